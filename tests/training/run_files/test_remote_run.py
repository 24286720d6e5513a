"""A run directory in a store: a real S3 server, with requests that break where it hurts."""

import json
import logging
import re
import shutil
import tempfile
import threading
from pathlib import Path

import pytest

from s3_server import reach, s3_server
from sparknet.config import Data, Net, Run, RunConfig
from sparknet.errors import RunDirError
from sparknet.training.coordination.best_round import BestRound
from sparknet.training.coordination.rules import RunProgress
from sparknet.training.run_files import ownership
from sparknet.training.run_files.checkpoint import INDEX, WEIGHTS, Checkpoints
from sparknet.training.run_files.event_log import EventLog
from sparknet.training.run_files.run_dir import RunDir, reading_run

URI = "s3://runs/one"
PATIENCE_SECONDS = 60.0


def config_of(keep=2, **data):
    return RunConfig(
        data=Data(source="digits", validation_fraction=0.2, **data),
        net=Net(name="lenet"),
        run=Run(rounds=7, keep_checkpoints=keep),
    )


@pytest.fixture(scope="module")
def shared():
    with s3_server("runs") as server:
        yield server


@pytest.fixture
def server(shared, monkeypatch, tmp_path):
    reach(shared, monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "work"))  # where working directories are made
    (tmp_path / "work").mkdir()
    yield shared
    shared.clear()
    shared.empty("runs")


@pytest.fixture
def work(tmp_path):
    return tmp_path / "work"


def keys(server, part=""):
    found = (key.removeprefix("one/") for key in server.keys("runs"))
    return {key for key in found if part in key and not key.startswith("owner-") and key[-1:] not in ("", "/")}


def text(server, key):
    return server.client().get_object(Bucket="runs", Key=f"one/{key}")["Body"].read().decode()


def put(server, key, body):
    server.client().put_object(Bucket="runs", Key=f"one/{key}", Body=body)


def checkpoint(run_dir, round, *, keep=2, weights=b"weights", best=None):
    with Checkpoints(run_dir.path, keep).writing(RunProgress(round=round, best=best)) as draft:
        draft.write(WEIGHTS, weights)


def rounds(server):
    """Those of whole checkpoints."""
    return sorted(int(re.search(r"round-(\d+)", key)[1]) for key in keys(server, INDEX))


def sent(server):
    """Names of what was written, in order."""
    puts = [request.path for request in server.requests if request.method == "PUT"]
    return [path.partition("?")[0].removeprefix("/runs/one/") for path in puts if "/owner-" not in path]


def test_a_new_run_is_there_when_it_is_made_and_all_of_it_when_it_is_closed(server, work):
    with RunDir.create(URI, config_of()) as run_dir:
        assert keys(server) == {"config.toml"}
        assert run_dir.uri == URI
        assert run_dir.is_remote
        with EventLog(run_dir.path, 0.0) as log:
            log.write("note", message="hello")
        (run_dir.path / "spark.log").write_text("java")
        (run_dir.path / "snapshots").mkdir()
        (run_dir.path / "snapshots" / "net_iter_1.caffemodel").write_text("blobs")
        (run_dir.path / "store").mkdir()
        (run_dir.path / "store" / "shard").write_text("rows")
        checkpoint(run_dir, 1)
        run_dir.catch_up()
        assert keys(server) == {
            "config.toml",
            "events.jsonl",
            "snapshots/net_iter_1.caffemodel",
            "checkpoints/round-000001/checkpoint.json",
            "checkpoints/round-000001/weights.safetensors",
        }
    assert text(server, "spark.log") == "java"
    assert json.loads(text(server, "events.jsonl"))["message"] == "hello"
    assert list(work.iterdir()) == []
    assert not [key for key in server.keys("runs") if "owner-" in key]
    with RunDir.reopen(URI) as run_dir:
        assert run_dir.load_config() == config_of()


def test_the_file_that_vouches_for_a_directory_is_the_last(server):
    with RunDir.create(URI, config_of()) as run_dir:
        server.clear()
        (run_dir.path / "model").mkdir()
        for name in ("model.json", "preprocess.safetensors", "weights.safetensors"):
            (run_dir.path / "model" / name).write_text(name)
        checkpoint(run_dir, 1)
        run_dir.save_result({"accuracy": 1.0})
        run_dir.catch_up()
        names = [name for name in sent(server) if name != "config.toml"]
    assert names == [
        "checkpoints/round-000001/weights.safetensors",
        "checkpoints/round-000001/checkpoint.json",
        "model/preprocess.safetensors",
        "model/weights.safetensors",
        "model/model.json",
        "result.json",
    ]


def test_a_round_that_is_written_once_more_is_none_meanwhile(server):
    with RunDir.create(URI, config_of()) as run_dir:
        checkpoint(run_dir, 1, weights=b"first")
        run_dir.catch_up()
        server.clear()
        checkpoint(run_dir, 1, weights=b"second")
        run_dir.catch_up()
        assert text(server, f"checkpoints/round-000001/{WEIGHTS}") == "second"
    of_round = [
        (r.method, r.path.rsplit("/", 1)[-1].partition("?")[0]) for r in server.requests if "round-0" in r.path
    ]
    changes = [change for change in of_round if change[0] in ("PUT", "DELETE")]
    assert changes[:1] == [("DELETE", INDEX)]
    assert changes[-2:] == [("PUT", WEIGHTS), ("PUT", INDEX)]


def test_nothing_is_sent_twice(server):
    with RunDir.create(URI, config_of()) as run_dir:
        checkpoint(run_dir, 1)
        run_dir.catch_up()
        server.clear()
        run_dir.catch_up()
        assert sent(server) == []


def test_as_many_checkpoints_are_kept_as_are_wanted(server):
    with RunDir.create(URI, config_of()) as run_dir:
        for round in (1, 2, 3, 4):
            checkpoint(run_dir, round)
            run_dir.catch_up()
        assert rounds(server) == [3, 4]
        assert len(keys(server, "checkpoints/")) == 4


def test_a_resumed_run_counts_those_that_it_has_not_fetched(server):
    config = config_of(keep=3)
    with RunDir.create(URI, config) as run_dir:
        for round in (1, 2, 3):
            checkpoint(run_dir, round, keep=3)
    with RunDir.reopen(URI) as run_dir:
        run_dir.fetch_checkpoints(Checkpoints(run_dir.path, 3))
        assert Checkpoints(run_dir.path, 3).rounds() == [3]
        server.clear()
        run_dir.catch_up()
        assert sent(server) == [], "what was fetched was sent again"
        assert rounds(server) == [1, 2, 3]
        checkpoint(run_dir, 4, keep=3)
        run_dir.catch_up()
        assert rounds(server) == [2, 3, 4]


def test_an_old_checkpoint_that_cannot_be_removed_costs_room_alone(server, caplog):
    with RunDir.create(URI, config_of()) as run_dir:
        for round in (1, 2):
            checkpoint(run_dir, round)
        run_dir.catch_up()
        server.inject("denied", method="DELETE", part="round-000001")
        checkpoint(run_dir, 3)
        run_dir.catch_up()
        assert rounds(server) == [1, 2, 3]
    assert server.injected["denied"]
    assert "an old checkpoint stays" in caplog.text


def test_damaged_and_half_checkpoints_are_passed_over(server):
    with RunDir.create(URI, config_of(keep=9)) as run_dir:
        for round in (1, 2, 3):
            checkpoint(run_dir, round, keep=9)
    put(server, f"checkpoints/round-000003/{WEIGHTS}", b"damaged")
    put(server, f"checkpoints/round-000004/{WEIGHTS}", b"half")
    put(server, f"checkpoints/round-000005/{INDEX}", b"{")
    put(server, "checkpoints/round-000006/strange", b"of somebody else")
    with RunDir.reopen(URI) as run_dir:
        checkpoints = Checkpoints(run_dir.path, 9)
        run_dir.fetch_checkpoints(checkpoints)
        saved, skipped = checkpoints.newest_good()
        assert saved.round == 2
        assert run_dir.as_found([str(path) for path in skipped]) == [
            f"{URI}/checkpoints/round-00000{round}" for round in (5, 4, 3)
        ]
        checkpoint(run_dir, 3, keep=9, weights=b"good again")
        run_dir.catch_up()
        assert text(server, f"checkpoints/round-000003/{WEIGHTS}") == "good again"


def test_the_best_round_is_fetched_too(server):
    best = BestRound(round=1, measure="accuracy", value=0.9)
    with RunDir.create(URI, config_of()) as run_dir:
        for round in (1, 2, 3, 4):
            checkpoint(run_dir, round, best=best)
    assert rounds(server) == [1, 3, 4]
    with RunDir.reopen(URI) as run_dir:
        checkpoints = Checkpoints(run_dir.path, 2)
        run_dir.fetch_checkpoints(checkpoints)
        assert checkpoints.rounds() == [1, 4]


def test_events_go_on_in_the_same_file(server):
    for number in (1, 2):
        with (
            RunDir.create(URI, config_of()) if number == 1 else RunDir.reopen(URI) as run_dir,
            EventLog(run_dir.path, 0.0) as log,
        ):
            log.write("note", number=number)
            run_dir.catch_up()
            log.write("note", number=number)
    lines = text(server, "events.jsonl").splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 1, 2, 2]


def test_small_breaks_are_mended(server):
    with RunDir.create(URI, config_of()) as run_dir:
        server.inject("500", times=1, method="PUT", part=WEIGHTS)
        server.inject("cut", times=2, method="PUT", part=INDEX)
        server.inject("lost", times=1, method="PUT", part="events")
        EventLog(run_dir.path, 0.0).close()
        checkpoint(run_dir, 1)
    assert rounds(server) == [1]
    assert {"500", "cut"} <= set(server.injected)


@pytest.mark.parametrize("kind", ["cut", "denied"])
def test_a_store_that_fails_for_good_fails_the_run_and_leaves_nothing_half(server, work, kind, monkeypatch):
    monkeypatch.setattr("sparknet.data.storage.retry.pause", lambda seconds: None)
    told = threading.Event()

    def train():
        with RunDir.create(URI, config_of()) as run_dir:
            checkpoint(run_dir, 1)
            run_dir.catch_up()
            run_dir.watch(told.set)
            server.inject(kind, method="PUT", part="round-000002/weights")
            server.inject(kind, method="POST", part="round-000002/weights")
            checkpoint(run_dir, 2, weights=b"w" * (11 << 20))  # in two parts
            run_dir.nudge()
            assert told.wait(PATIENCE_SECONDS)
            run_dir.check_up()

    with pytest.raises(
        RunDirError, match=rf"{URI} does not take what the run writes: .*cannot be written"
    ) as caught:
        train()
    (note,) = caught.value.__notes__
    (directory,) = work.iterdir()
    assert f"all that it has written is in {directory}" in note
    assert f"`sparknet resume {directory}`" in note
    assert server.injected[kind]
    assert rounds(server) == [1]
    assert not keys(server, "round-000002")
    server.clear()
    # What stays is a run directory like any other.
    with RunDir.reopen(directory) as local:
        assert not local.is_remote
        assert Checkpoints(local.path, 2).newest_good()[0].round == 2
    with RunDir.reopen(URI) as again:
        again.fetch_checkpoints(Checkpoints(again.path, 2))
        assert Checkpoints(again.path, 2).newest_good()[0].round == 1


def test_a_store_that_fails_after_the_run_does_is_a_note_of_its_error(server, work):
    def fail():
        with RunDir.create(URI, config_of()) as run_dir:
            (run_dir.path / "events.jsonl").write_text("{}\n")
            server.inject("denied", method="PUT", part="events")
            raise ValueError("the run failed")

    with pytest.raises(ValueError, match="the run failed") as caught:
        fail()
    notes = "\n".join(caught.value.__notes__)
    assert "does not take what the run writes" in notes
    assert str(next(work.iterdir())) in notes


def test_whoever_watches_a_run_never_waits_for_the_store(server):
    with RunDir.create(URI, config_of()) as run_dir:
        server.inject("delay", method="PUT", part="round-000001", seconds=3.0, times=1)
        checkpoint(run_dir, 1)
        run_dir.nudge()
        server.wait_for("delay")
        # The store is at it: these must return now, and rounds that come and go meanwhile be left out.
        for round in (2, 3, 4, 5):
            checkpoint(run_dir, round)
            run_dir.nudge()
            run_dir.check_up()
        assert rounds(server) == []
        run_dir.catch_up()
        assert rounds(server) == [4, 5]
        put_rounds = {re.search(r"round-(\d+)", name)[1] for name in sent(server) if "round-" in name}
        assert put_rounds == {"000001", "000004", "000005"}


def test_a_driver_that_lost_its_directory_writes_no_more(server, work):
    lost = threading.Event()

    def train():
        with RunDir.create(URI, config_of()) as run_dir:
            run_dir.watch(lost.set)
            for key in [key for key in server.keys("runs") if "owner-" in key]:
                server.client().delete_object(Bucket="runs", Key=key)
            run_dir._remote._owner._confirmed = 0.0  # it slept
            checkpoint(run_dir, 1)
            run_dir.nudge()
            assert lost.wait(PATIENCE_SECONDS)
            run_dir.check_up()

    with pytest.raises(RunDirError, match="was taken over from this run"):
        train()
    assert keys(server) == {"config.toml"}
    assert len(list(work.iterdir())) == 1, "what it had written is gone"


def test_two_drivers(server, monkeypatch):
    monkeypatch.setattr(ownership, "RENEW_SECONDS", 0.5)
    monkeypatch.setattr("sparknet.training.run_files.remote_run.RENEW_SECONDS", 0.5)
    with RunDir.create(URI, config_of()) as run_dir:
        with pytest.raises(RunDirError, match="is in use by another run"):
            RunDir.reopen(URI)
        with pytest.raises(RunDirError, match=rf"holds a run already; go on with `sparknet resume {URI}`"):
            RunDir.create(URI, config_of())
        run_dir.check_up()
    RunDir.reopen(URI).close()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://nobodys/run", r"cannot be used: s3://nobodys: no such bucket"),
        (URI, r"cannot be used: .*access is refused"),
    ],
)
def test_a_bucket_that_cannot_be_written_is_an_error_at_once(server, work, uri, words):
    server.inject("denied", method="PUT")
    with pytest.raises(RunDirError, match=words):
        RunDir.create(uri, config_of())
    assert list(work.iterdir()) == []
    assert keys(server) == set()


def test_a_directory_without_a_run(server):
    for ask in (RunDir.reopen, RunDir.check, lambda uri: reading_run(uri).__enter__()):
        with pytest.raises(RunDirError, match=rf"{URI} holds no run \(there is no config.toml in it\)"):
            ask(URI)


def test_prepared_data_lie_in_the_run_directory_or_where_it_is_said(server, tmp_path):
    with RunDir.create(URI, config_of(store=str(tmp_path / "shared"))) as run_dir:
        assert run_dir.store(run_dir.load_config()) == str(tmp_path / "shared")
        assert run_dir.store(config_of()) == f"{URI}/store"
    with reading_run(URI) as run:
        assert run.store(config_of()) == f"{URI}/store"


def test_a_run_is_looked_at_while_its_driver_goes_on(server, work, caplog):
    caplog.set_level(logging.WARNING)
    with RunDir.create(URI, config_of()) as run_dir:
        with reading_run(URI) as run:
            assert run.load_config(["run.rounds=9"]).run.rounds == 9
            assert run.load_result() is None
        run_dir.save_result({"accuracy": 0.5})
        run_dir.catch_up()
        with reading_run(URI) as run:
            assert run.load_result() == {"accuracy": 0.5}
            assert run.uri == URI
        assert len(list(work.iterdir())) == 1
    assert caplog.text == ""


def test_an_endpoint_in_the_configuration(server, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with RunDir.create(URI, config_of(s3_endpoint=server.endpoint)):
        pass
    with RunDir.reopen(URI, s3_endpoint=server.endpoint) as run_dir:
        assert run_dir.load_config().data.s3_endpoint == server.endpoint


def test_what_names_the_working_directory_is_told_by_its_place(server, tmp_path):
    with RunDir.create(URI, config_of()) as run_dir:
        path = run_dir.path / "checkpoints" / "round-000001"
        assert run_dir.as_found(str(path)) == f"{URI}/checkpoints/round-000001"
        assert run_dir.as_found(f"see {path}, please") == f"see {URI}/checkpoints/round-000001, please"
        assert run_dir.as_found([str(path), 3]) == [f"{URI}/checkpoints/round-000001", 3]
    with RunDir.create(tmp_path / "run", config_of()) as local:
        assert local.as_found(str(local.path)) == str(local.path)
        for ask in (local.nudge, local.check_up, local.catch_up):
            ask()


def test_a_working_directory_that_cannot_be_made_is_told_before_anything_is_there(server, work):
    shutil.rmtree(work)
    with pytest.raises(RunDirError, match=r"name a disk with room in TMPDIR: No such file"):
        RunDir.create(URI, config_of())
    assert not Path(work).exists()
    assert not [key for key in server.keys("runs") if "owner-" in key]
