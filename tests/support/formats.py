"""Makes small files in the formats that the readers know, and shards, from known arrays."""

import gzip
import struct
from pathlib import Path

import numpy as np

from sparknet.data.rows.columns import Column
from sparknet.data.shards.shard_table import Shard, ShardTable
from sparknet.data.shards.shard_writer import ShardWriter


def random_rows(rows, shape, *, classes=10, seed=0):
    """Images uint8 [rows, *shape] and labels int64 [rows]."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (rows, *shape), dtype=np.uint8)
    return images, random.integers(0, classes, rows)


def write_cifar(path, images, labels):
    """Write a CIFAR-10 binary batch: a label byte and 3x32x32 bytes for each row."""
    records = np.concatenate([labels.astype(np.uint8)[:, None], images.reshape(len(images), -1)], axis=1)
    path.write_bytes(records.tobytes())
    return path


def cifar_directory(directory, *, rows=20, batches=3, test_rows=15):
    """Write data_batch_1.bin … and test_batch.bin; gives the training and the test rows."""
    directory.mkdir(parents=True, exist_ok=True)
    images, labels = random_rows(rows * batches, (3, 32, 32), seed=1)
    for batch in range(batches):
        part = slice(batch * rows, (batch + 1) * rows)
        write_cifar(directory / f"data_batch_{batch + 1}.bin", images[part], labels[part])
    test = random_rows(test_rows, (3, 32, 32), seed=2)
    write_cifar(directory / "test_batch.bin", *test)
    return (images, labels), test


def idx(values, *, magic=None):
    """IDX bytes of uint8 images [n, h, w] or labels [n]."""
    magic = (0x800 + values.ndim) if magic is None else magic
    return struct.pack(f">I{values.ndim}I", magic, *values.shape) + values.astype(np.uint8).tobytes()


def write_mnist(directory, stem, images, labels, *, dot="-", zipped=False):
    """Write `<stem>-images-idx3-ubyte[.gz]` and its labels file; gives the images file."""
    directory.mkdir(parents=True, exist_ok=True)
    pack, end = (gzip.compress, ".gz") if zipped else (bytes, "")
    path = directory / f"{stem}-images{dot}idx3-ubyte{end}"
    path.write_bytes(pack(idx(images.reshape(len(images), 28, 28))))
    (directory / f"{stem}-labels{dot}idx1-ubyte{end}").write_bytes(pack(idx(labels)))
    return path


def columns(shape, dtype="uint8"):
    """An input column `image` and a label column `label`."""
    return (
        Column(name="image", dtype=dtype, shape=shape),
        Column(name="label", dtype="int64", shape=(), classes=10),
    )


def make_table(directory, shard_rows, *, shape=(2, 3), dtype="uint8", seed=0):
    """Write shards of the given sizes; gives the table and its rows as plain arrays."""
    images, labels = random_rows(sum(shard_rows), shape, seed=seed)
    images = images.astype(dtype)
    shards, at = [], 0
    for number, rows in enumerate(shard_rows):
        part = slice(at, at + rows)
        writer = ShardWriter(
            Path(directory), prefix=f"s{number}", columns=columns(shape, dtype), shard_bytes=1 << 30
        )
        writer.append({"image": images[part], "label": labels[part]})
        shards += [
            Shard(path=done.name, rows=done.statistics.rows, bytes=done.bytes, sha256=done.sha256)
            for done in writer.close()
        ]
        at += rows
    return ShardTable(Path(directory), shards, columns(shape, dtype)), images, labels
