"""Source files that each host has for itself: on one machine, whose tasks find each other."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from formats import cifar_directory
from prepared import open_prepare_session
from sparknet.config import Data
from sparknet.data.shards.prepared import PreparedData
from sparknet.errors import ClusterError, ConfigError, DataError
from sparknet.spark.preparing import hosts
from sparknet.spark.preparing.prepare import Frames, prepare_run

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark():
    session = open_prepare_session("test_hosts")
    yield session
    session.stop()


@pytest.fixture
def data(tmp_path):
    cifar_directory(tmp_path / "cifar")
    path = str(tmp_path / "cifar")
    store = str(tmp_path / "store")
    return Data(source="cifar10", path=path, validation_path=path, on_hosts=True, store=store)


def rows_of(prepared: PreparedData, split):
    with getattr(prepared, f"{split}_table")() as table:
        rows = table.slice(0, len(table))
    return rows["image"], rows["label"]


def prepare(spark, data, **given):
    return prepare_run(spark, data, store=given.pop("store", data.store), seed=3, workers=2, **given)


@pytest.mark.parametrize("held_out", ["path", "fraction"])
def test_one_machine_gives_the_rows_of_a_shared_path(spark, tmp_path, data, held_out):
    if held_out == "fraction":
        data = replace(data, validation_path="", validation_fraction=0.2)
    found = prepare(spark, data)
    shared = prepare(spark, replace(data, on_hosts=False, store=""), store=tmp_path / "shared")
    for split in ("train", "validation"):
        here, there = rows_of(found, split), rows_of(shared, split)
        np.testing.assert_array_equal(here[0], there[0])
        np.testing.assert_array_equal(here[1], there[1])
    assert found.on_hosts
    assert not shared.on_hosts
    assert found.manifests[0].stored("image").channel_mean == shared.manifests[0].stored("image").channel_mean


def test_the_same_files_are_prepared_once(spark, tmp_path, data):
    first = prepare(spark, data)
    (own,) = (tmp_path / "store").glob("own-*")
    made = {path: path.stat().st_mtime_ns for path in own.rglob("*.arrow")}
    assert len(made) == len(first.manifests[0].train)
    again = prepare(spark, data)
    assert again.manifests == first.manifests
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*.arrow")} == made
    assert not list((tmp_path / "store").glob(".host-*"))


def test_files_that_change_are_prepared_anew(spark, data, tmp_path):
    before = prepare(spark, data)
    cifar_directory(tmp_path / "cifar", rows=25)
    after = prepare(spark, data)
    assert after.train_rows == 75
    assert after.fingerprint != before.fingerprint


def test_shards_that_are_gone_are_told(spark, data, tmp_path):
    prepare(spark, data)
    next((tmp_path / "store").glob("own-*/*/*.arrow")).unlink()
    with pytest.raises(DataError, match=r"1 of 3 training shards.* to prepare the data again"):
        prepare(spark, data)


def test_what_an_attempt_left_is_removed(spark, data, tmp_path):
    prepare(spark, data)
    (directory,) = (tmp_path / "store").glob("own-*/*")
    left = directory / "train-00000-other-0000.arrow"
    left.touch()
    prepare(spark, data)
    assert not left.exists()


def test_a_host_without_files_is_named(spark, data, tmp_path):
    shutil.rmtree(tmp_path / "cifar")
    with pytest.raises(DataError, match=r"host \S+: .*cifar.*on_hosts every host has files"):
        prepare(spark, data)
    assert not list((tmp_path / "store").iterdir())


def test_a_damaged_source_leaves_nothing_on_the_hosts(spark, data, tmp_path):
    batch = tmp_path / "cifar" / "data_batch_2.bin"
    batch.write_bytes(b"\xff" * 3073 * 20)  # a label of 255
    with pytest.raises(DataError, match="255"):
        prepare(spark, data)
    assert not list((tmp_path / "store").rglob("*.arrow"))


def test_a_worker_without_shards_is_told_where_rows_are(spark, data, tmp_path):
    found = prepare(spark, data)
    shutil.rmtree(next((tmp_path / "store").glob("own-*")))
    with pytest.raises(ClusterError, match=r"has none of the 3 training shards .* as many cores as"):
        found.train_table()


def test_more_workers_than_cores_are_refused(spark, data, monkeypatch):
    monkeypatch.setattr(hosts, "_SECONDS", 5.0)
    with pytest.raises(ClusterError, match="core"):
        prepare_run(spark, data, store=data.store, seed=3, workers=3)


def test_rows_of_a_dataframe_are_on_no_host(spark, data):
    frames = Frames(train=spark.range(3), validation=spark.range(3))
    with pytest.raises(ConfigError, match=r"data\.on_hosts"):
        prepare(spark, data, sources=frames)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"store": ""}, "data.store is ''"),
        ({"store": "store"}, "data.store is 'store'"),
        ({"path": "s3://bucket/key"}, "absolute path"),
        ({"validation_path": "cifar"}, "absolute path"),
    ],
)
def test_settings_that_say_no_place_of_a_host(data, given, told):
    with pytest.raises(ConfigError, match=told):
        replace(data, **given)


@pytest.mark.parametrize("source", ["parquet", "csv"])
def test_what_spark_reads_is_on_no_host(spark, data, source):
    with pytest.raises(ConfigError, match=f"source {source} is read by Spark"):
        prepare(spark, replace(data, source=source))
