"""A manifest, for what is made of one."""

from sparknet.data.rows.columns import Column
from sparknet.data.shards.manifest import Manifest, StoredColumn
from sparknet.data.shards.shard_table import Shard

MANIFEST = Manifest(
    columns=(
        StoredColumn(
            column=Column(name="image", dtype="uint8", shape=(3, 2, 2)),
            channel_mean=(1.5, 2.0, 0.25),
            channel_std=(0.5, 0.0, 1.25),
            mean_image="mean-0.npy",
        ),
        StoredColumn(column=Column(name="label", dtype="int64", shape=(), classes=3), counts=(3, 0, 4)),
    ),
    inputs=("image",),
    targets=("label",),
    train=(Shard(path="train-00000.arrow", rows=4), Shard(path="train-00001.arrow", rows=3)),
    validation=(Shard(path="validation-00000.arrow", rows=2),),
    source={"source": "cifar10", "path": "/data", "files": 5},
    fingerprint="ab" * 32,
    seed=7,
)
