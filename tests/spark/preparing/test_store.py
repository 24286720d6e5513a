"""Stores that the workers do not see, and object stores: the rows and the manifest of a shared directory."""

import json
import os
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from prepared import as_set, open_prepare_session
from s3_server import reach, s3_server
from sparknet.config import Cluster, Data, Net, Run, RunConfig
from sparknet.data.shards import remote_store
from sparknet.data.shards.host_cache import CachePlace
from sparknet.data.storage.place import Storage
from sparknet.errors import DataError
from sparknet.spark.jobs.file_service import FileService
from sparknet.spark.jobs.ports import DriverAddress, DriverHost
from sparknet.spark.preparing import prepare as preparation
from sparknet.spark.preparing.prepare import prepare_run
from sparknet.spark.preparing.store import Store, look_for, open_store

pytestmark = pytest.mark.spark

DIGITS = Data(source="digits", validation_fraction=0.2, shard_megabytes=0.03)


@pytest.fixture(scope="module")
def server():
    patch = pytest.MonkeyPatch()
    with s3_server("bucket") as running:
        reach(running, patch)
        yield running
    patch.undo()


@pytest.fixture(scope="module")
def spark(server):
    known = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION")
    session = open_prepare_session("test_store", **{name: os.environ[name] for name in known})
    yield session
    session.stop()


@pytest.fixture
def cache(tmp_path):
    return CachePlace(directory=str(tmp_path / "cache"), gigabytes=1)


@pytest.fixture(scope="module")
def shared(spark, tmp_path_factory):
    """What a shared directory gives."""
    return prepare_run(spark, DIGITS, store=tmp_path_factory.mktemp("shared"), seed=3)


@pytest.fixture
def remote(spark, server):
    server.empty("bucket")
    server.clear()
    return Storage(s3_endpoint=server.endpoint).place("s3://bucket/some/store")


def rows_of(data, split):
    with getattr(data, f"{split}_table")() as table:
        rows = table.slice(0, len(table))
        return rows["image"], rows["label"]


def assert_equal(found, shared):
    for split in ("train", "validation"):
        for here, there in zip(rows_of(found, split), rows_of(shared, split), strict=True):
            np.testing.assert_array_equal(here, there)
    ours, theirs = found.manifests[0], shared.manifests[0]
    assert [shard.sha256 for shard in ours.train] == [shard.sha256 for shard in theirs.train]
    assert [replace(one, mean_image="") for one in ours.columns] == [
        replace(one, mean_image="") for one in theirs.columns
    ]
    stored, place = found.stored["image"]
    known, directory = shared.stored["image"]
    np.testing.assert_array_equal(stored.load_mean_image(place), known.load_mean_image(directory))


def refuse_jobs(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a job was run")

    monkeypatch.setattr(preparation, "_run_job", refuse)


def test_through_the_driver(spark, shared, tmp_path, cache, monkeypatch):
    directory = tmp_path / "store"
    directory.mkdir()
    with FileService(directory, at=DriverHost(host="127.0.0.1"), token="t") as service:
        address = DriverAddress(uri=service.address, token="t")
        place = Storage().place(str(directory))
        # A mark that nobody sees: as on another machine.
        store = Store(place=place, cache=cache, service=address, mark="/nowhere/.seen", fetched=True)
        found = prepare_run(spark, DIGITS, store=store, seed=3)
        assert_equal(found, shared)
        assert not found.by_shard  # a small data set is mixed as a whole
        names = sorted(path.name for path in directory.rglob("*") if path.is_file())
        assert names[:2] == ["manifest.json", "mean-0.npy"]
        assert names[2] == "train-00000.arrow"
        assert [path.name for path in directory.iterdir()] == [found.fingerprint[:16]]
        copies = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        assert len(copies) == len(found.manifests[0].train) + len(found.manifests[0].validation)
        refuse_jobs(monkeypatch)
        few = replace(store, cache=replace(cache, gigabytes=1e-4))
        assert prepare_run(spark, DIGITS, store=few, seed=3).by_shard


def test_an_object_store(spark, shared, remote, server, cache, monkeypatch):
    store = Store(place=remote, cache=cache, fetched=True)
    server.inject("slow_down", method="PUT", times=1)
    found = prepare_run(spark, replace(DIGITS, s3_endpoint=server.endpoint), store=store, seed=3)
    assert server.injected["slow_down"] == 1
    assert_equal(found, shared)
    keys = server.keys("bucket")
    directory = f"some/store/{found.fingerprint[:16]}"
    assert f"{directory}/manifest.json" in keys
    # Shards, the mean image and the manifest: no sums, no leftovers.
    assert (
        len([key for key in keys if not key.endswith("/")])
        == len(found.manifests[0].train) + len(found.manifests[0].validation) + 2
    )
    refuse_jobs(monkeypatch)
    again = prepare_run(spark, replace(DIGITS, s3_endpoint=server.endpoint), store=store, seed=3)
    assert again.manifests == found.manifests
    lost = f"{directory}/{found.manifests[0].train[1].path}"
    server.client().delete_object(Bucket="bucket", Key=lost)
    with pytest.raises(DataError, match=r"arrow: the shard is missing; the manifest says \d+ bytes: delete s3://"):
        prepare_run(spark, replace(DIGITS, s3_endpoint=server.endpoint), store=store, seed=3)


def test_a_preparation_that_fails_leaves_nothing_in_an_object_store(spark, remote, server, cache):
    store = Store(place=remote, cache=cache, fetched=True)
    server.inject("denied", method="PUT", part="manifest.json")
    with pytest.raises(DataError, match=r"manifest\.json: cannot be written"):
        prepare_run(spark, replace(DIGITS, s3_endpoint=server.endpoint), store=store, seed=3)
    assert server.injected["denied"] >= 1
    assert [key for key in server.keys("bucket") if not key.endswith("/")] == []


def test_what_a_lost_attempt_left_is_not_published(spark, remote, server, cache, monkeypatch):
    run_job = preparation._run_job

    def lost_too(asked, plan):
        found = run_job(asked, plan)
        for name in ("train-00000-0ff-0000.arrow", "sums-00000-0ff.npz"):
            (plan.delivery.directory / name).write(b"of an attempt whose report never came")
        return found

    monkeypatch.setattr(preparation, "_run_job", lost_too)
    store, data = Store(place=remote, cache=cache, fetched=True), replace(DIGITS, s3_endpoint=server.endpoint)
    (manifest,) = prepare_run(spark, data, store=store, seed=3).manifests
    named = {shard.path.split("/")[1] for shard in (*manifest.train, *manifest.validation)}
    there = {key.split("/")[-1] for key in server.keys("bucket") if not key.endswith("/")}
    assert there == named | {"manifest.json", "mean-0.npy"}


def test_who_publishes_second_takes_what_is_there(spark, remote, server, cache, monkeypatch):
    store, data = Store(place=remote, cache=cache, fetched=True), replace(DIGITS, s3_endpoint=server.endpoint)
    run_job = preparation._run_job

    def others_first(asked, plan):
        monkeypatch.setattr(preparation, "_run_job", run_job)
        prepare_run(spark, data, store=store, seed=3)
        return run_job(asked, plan)

    monkeypatch.setattr(preparation, "_run_job", others_first)
    found = prepare_run(spark, data, store=store, seed=3)
    drafts = {key.split("/")[3] for key in server.keys("bucket") if key.count("/") == 4 and not key.endswith("/")}
    assert drafts == {found.manifests[0].train[0].path.split("/")[0]}


def test_what_killed_preparations_left_goes_after_a_day(remote, server, monkeypatch):
    prepared, whole, old = "0123456789abcdef", "a" * 32, "b" * 32
    (remote / prepared / "manifest.json").write(
        json.dumps({"train": f"{whole}/train-00000-ab-0000.arrow"}).encode()
    )
    for draft in (whole, old):
        (remote / prepared / draft / "train-00000-ab-0000.arrow").write(b"x")
    (remote / "fedcba9876543210" / old / "train-00000-ab-0000.arrow").write(b"x")
    (remote / "somebody" / "elses" / "file").write(b"x")
    (remote / "aaaaaaaaaaaaaaaa" / old / "theirs.arrow").write(b"x")
    everything = set(server.keys("bucket"))
    remote_store.sweep(remote)
    assert set(server.keys("bucket")) == everything  # they may be at work
    monkeypatch.setattr(time, "time", partial(lambda now: now + 25 * 3600, time.time()))
    remote_store.sweep(remote)
    left = {key for key in server.keys("bucket") if not key.endswith("/")}
    assert {key.removeprefix("some/store/") for key in left} == {
        f"{prepared}/manifest.json",
        f"{prepared}/{whole}/train-00000-ab-0000.arrow",
        "somebody/elses/file",
        f"aaaaaaaaaaaaaaaa/{old}/theirs.arrow",
    }


def test_leftovers_that_may_not_be_removed_are_in_nobodys_way(spark, remote, cache, shared, monkeypatch, caplog):
    def refuse(place):
        raise DataError(f"{place}/old: cannot be removed: access is refused")

    monkeypatch.setattr(preparation, "sweep", refuse)
    found = prepare_run(spark, DIGITS, store=Store(place=remote, cache=cache, fetched=True), seed=3)
    assert found.train_rows == shared.train_rows
    assert "access is refused" in caplog.text


def test_an_embedded_session_is_one_machine(spark, tmp_path):
    config = RunConfig(data=DIGITS, net=Net(name="digits_cnn"), run=Run(rounds=1, workers=2), cluster=Cluster())
    with open_store(
        spark, str(tmp_path / "store"), config, at=DriverHost(host="127.0.0.1"), note=pytest.fail
    ) as store:
        assert (store.service, store.fetched, store.reach("x")) == (None, False, None)
    assert not (tmp_path / "store").exists()
    with open_store(spark, "s3://bucket/x", config, at=DriverHost(host="127.0.0.1"), note=pytest.fail) as store:
        assert store.fetched
        assert store.reach("y").source.directory.uri == "s3://bucket/x/y"


def test_a_task_says_whether_it_sees_the_mark(tmp_path):
    assert list(look_for(str(tmp_path / "mark"), iter([]))) == [{"seen": False}]
    (tmp_path / "mark").touch()
    assert list(look_for(str(tmp_path / "mark"), iter([]))) == [{"seen": True}]


def test_rows_of_both_ways_are_the_source(shared):
    both = [rows_of(shared, split) for split in ("train", "validation")]
    assert len(as_set(*both[0])) + len(as_set(*both[1])) == 1797
