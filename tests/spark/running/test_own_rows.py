"""Runs whose hosts have rows of their own: whole, killed, resumed, and which rows a worker is dealt."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from digits import CONFIG, Story, assert_rounds_in_order, open_test_session
from sparknet.config import Data, RunConfig, load_config, override
from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.shards.prepared import PreparedData
from sparknet.data.sources import datum
from sparknet.errors import ClusterError
from sparknet.spark.preparing.prepare import prepare_run
from sparknet.spark.running.dealing import Dealt
from sparknet.spark.running.run import train
from sparknet.training.run_files.run_dir import RunDir

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark():
    session = open_test_session("local[2,16]")
    yield session
    session.stop()


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
    """Two databases with all digits, as a pattern."""
    directory = tmp_path_factory.mktemp("databases")
    images, labels = load_digits(return_X_y=True)
    for number, rows in enumerate(np.array_split(np.arange(len(images)), 2)):
        with DatabaseWriter(directory / f"lmdb0{number}") as writer:
            for row in rows:
                pixels = images[row].astype(np.uint8).tobytes()
                writer.append(datum.write(shape=(1, 8, 8), data=pixels, label=int(labels[row])))
    return f"{directory}/lmdb0*"


def config_of(databases: str, tmp_path: Path, *settings: str) -> RunConfig:
    own = [
        "data.source='lmdb'",
        f"data.path={databases!r}",
        "data.on_hosts=true",
        f"data.store={str(tmp_path / 'store')!r}",
        "data.shard_megabytes=0.02",
    ]
    return load_config(CONFIG, [*own, *settings])


def test_a_killed_worker_comes_back_to_its_rows_and_the_run_goes_on_later(spark, databases, tmp_path):
    story = Story()
    story.at_round("kill", 10, story.kill(1))
    config = config_of(databases, tmp_path, "run.rounds=60")
    with RunDir.create(tmp_path / "run", config) as run_dir:
        result = train(config, run_dir, spark=spark, observers=[story.observe])
    assert "kill" in story.fired
    assert result.accuracy > 0.95
    assert_rounds_in_order(story, 60)
    assert [event["slot"] for event in story.of("worker_lost")] == [1]
    again = Story()
    with RunDir.reopen(tmp_path / "run") as run_dir:
        longer = override(run_dir.load_config(), ["run.rounds=65"])
        result = train(longer, run_dir, spark=spark, observers=[again.observe])
    assert result.accuracy > 0.95
    assert [event["round"] for event in again.of("round")] == [61, 62, 63, 64, 65]


@pytest.fixture(scope="module")
def prepared(spark, databases, tmp_path_factory) -> PreparedData:
    store = tmp_path_factory.mktemp("prepared")
    data = Data(
        source="lmdb",
        path=databases,
        validation_fraction=0.2,
        on_hosts=True,
        store=str(store),
        shard_megabytes=0.02,
    )
    return prepare_run(spark, data, store=store, seed=0, workers=2)


def on_host(prepared: PreparedData, directory: Path, shards: slice) -> PreparedData:
    """The same data on a host that has some of the shards."""
    (part,), (manifest,) = prepared.parts, prepared.manifests
    for shard in manifest.train[shards]:
        file = directory / shard.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((Path(part.own) / shard.path).read_bytes())
    return replace(prepared, parts=(replace(part, own=str(directory)),))


def test_a_worker_has_the_rows_of_its_host_and_no_others(prepared, tmp_path):
    config = load_config(CONFIG)
    count = len(prepared.manifests[0].train)
    assert count >= 4
    hosts = [on_host(prepared, tmp_path / "a", slice(2)), on_host(prepared, tmp_path / "b", slice(2, count))]
    dealt = [Dealt.of(host, config, slot=slot, cuts=None) for slot, host in enumerate(hosts)]
    sizes = [len(one.order) for one in dealt]
    assert sizes == [len(one.table) for one in dealt]
    assert sum(sizes) == prepared.train_rows
    assert dealt[0].rows != dealt[1].rows
    for one in dealt:
        assert sorted(one.order.rows(0, 0, len(one.order)).tolist()) == list(range(len(one.table)))
    # The same slot on the same host reads the same, another slot of it in another order.
    same, other = (Dealt.of(hosts[0], config, slot=slot, cuts=None) for slot in (0, 1))
    first = dealt[0].order.rows(0, 0, sizes[0])
    np.testing.assert_array_equal(same.order.rows(0, 0, sizes[0]), first)
    assert same.rows == other.rows == dealt[0].rows
    assert not np.array_equal(other.order.rows(0, 0, sizes[0]), first)


def test_a_shard_that_was_cut_short_is_not_there(prepared, tmp_path):
    host = on_host(prepared, tmp_path / "a", slice(2))
    file = tmp_path / "a" / host.shards_here[0].path
    file.write_bytes(file.read_bytes()[:-1])
    assert len(host.shards_here) == 1
    file = tmp_path / "a" / host.shards_here[0].path
    file.unlink()
    with pytest.raises(ClusterError, match="has none of the"):
        Dealt.of(host, load_config(CONFIG), slot=0, cuts=None)
