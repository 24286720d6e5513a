"""Runs whose directory is in a store, as a user at a terminal has them: killed, resumed elsewhere, tested."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from cli_process import SPARKNET, Outcome, sparknet, table_of
from digits import BAR, CONFIG
from s3_server import S3Server, reach, s3_server
from sparknet.config import load_config
from sparknet.training.run_files.run_dir import RunDir, reading_run
from sparknet.training.run_files.saved_model import load_model

pytestmark = [pytest.mark.spark, pytest.mark.chaos]

LONG = ["--set", "run.rounds=4000", "--set", "run.checkpoint_every=10", "--set", "run.eval_every=0"]
URI = "s3://runs/digits"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> S3Server:
    with s3_server("runs") as server:
        reach(server, monkeypatch)
        yield server
        server.empty("runs")  # moto's objects outlive its servers


def text(server: S3Server, key: str) -> str:
    return server.client().get_object(Bucket="runs", Key=f"digits/{key}")["Body"].read().decode()


def events(server: S3Server) -> list[dict]:
    return [json.loads(line) for line in text(server, "events.jsonl").splitlines()]


def whole_rounds(server: S3Server) -> list[int]:
    keys = server.keys("runs")
    return sorted(int(match[1]) for key in keys if (match := re.search(r"round-(\d+)/checkpoint\.json", key)))


def start(place: Path, *words: object) -> "subprocess.Popen[str]":
    """The real command on a machine of its own, as far as files go."""
    (place / "tmp").mkdir(parents=True)
    return subprocess.Popen(
        [*SPARKNET, *map(str, words)],
        cwd=place,
        env={**os.environ, "TMPDIR": str(place / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: "subprocess.Popen[str]") -> Outcome:
    out, err = process.communicate(timeout=240)
    return Outcome(process.returncode, out, err, 0.0)


def wait_for_rounds(server: S3Server, process: "subprocess.Popen[str]", least: int) -> None:
    deadline = time.monotonic() + 150
    while not any(round >= least for round in whole_rounds(server)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no checkpoint of round {least} came"
        time.sleep(0.1)  # polling a store that another process writes


@pytest.mark.timeout(600)  # five commands and the time after which a silent driver counts as dead
def test_a_driver_is_killed_and_another_machine_goes_on(server: S3Server, tmp_path: Path) -> None:
    first = start(tmp_path / "first", "train", CONFIG, "--run-dir", URI, *LONG)
    wait_for_rounds(server, first, 30)
    prepared = named(server, "/store/")

    # A second driver beside it is told whose the directory is, and the first does not notice.
    second = sparknet("resume", URI, cwd=tmp_path)
    second.refused(
        1, rf"{URI} is in use by another run \(host .*, pid {first.pid}, since .*choose another --run-dir"
    )
    assert first.poll() is None

    children = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.communicate()
    psutil.wait_procs(children, timeout=10)
    kept = whole_rounds(server)
    assert 1 <= len(kept) <= 4  # keep_checkpoints is 3, and one may have been on its way
    key = f"digits/checkpoints/round-{kept[-1]:06d}/weights.safetensors"
    server.client().put_object(Bucket="runs", Key=key, Body=b"damaged on purpose")

    total = kept[-1] + 20
    resumed = end(start(tmp_path / "second", "resume", URI, "--set", f"run.rounds={total}"))
    assert resumed.code == 0, resumed.err
    assert f"pid {first.pid}" in resumed.err
    assert "waiting for up to" in resumed.err
    assert f"waiting until all of the run is in {URI}" in resumed.out
    (note,) = [event for event in events(server) if event["event"] == "run_resumed"]
    assert note["round"] == kept[-2]
    assert note["path"] == f"{URI}/checkpoints/round-{kept[-2]:06d}"
    assert note["skipped"] == [f"{URI}/checkpoints/round-{kept[-1]:06d}"]
    assert events(server)[-1]["event"] == "run_finished"
    assert total in whole_rounds(server)
    assert not [key for key in server.keys("runs") if "/owner-" in key]
    assert not list((tmp_path / "second" / "tmp").glob("sparknet-run-*")), "a finished run leaves nothing here"
    assert list((tmp_path / "first" / "tmp").glob("sparknet-run-*")), "the killed one had no chance to"
    assert "finished" in text(
        server, next(k for k in named(server, "training_log") if "finished" in text(server, k))
    )
    assert text(server, "spark.log") is not None

    with reading_run(URI) as run:
        result = run.load_result()
        assert run.load_config().run.rounds == total
    assert result is not None
    assert result["rounds"] == total
    assert result["accuracy"] >= BAR
    assert result["run_dir"] == URI
    assert load_model(f"{URI}/model").objective.name == load_config(CONFIG).net.name

    tested = end(start(tmp_path / "third", "test", URI))
    assert tested.code == 0, tested.err
    assert any(key.endswith("/manifest.json") for key in prepared)
    assert named(server, "/store/") == prepared, "nobody prepared the data once more"
    assert table_of(tested)["accuracy"] == f"{100 * result['accuracy']:.2f} %"
    assert not list((tmp_path / "third" / "tmp").glob("sparknet-run-*"))

    again = end(start(tmp_path / "fourth", "resume", URI))
    assert again.code == 0, again.err
    assert f"{URI} is finished" in again.out
    with RunDir.reopen(URI) as opened:
        assert opened.load_result() == result


def named(server: S3Server, part: str) -> list[str]:
    return [key.removeprefix("digits/") for key in server.keys("runs") if part in key]


def test_a_store_that_fails_ends_the_run_and_the_local_copy_goes_on(server: S3Server, tmp_path: Path) -> None:
    first = start(tmp_path / "first", "train", CONFIG, "--run-dir", URI, *LONG)
    wait_for_rounds(server, first, 20)
    server.inject("denied", method="PUT")
    began = time.monotonic()
    ended = end(first)
    assert time.monotonic() - began < 60
    ended.refused(1, rf"{URI} does not take what the run writes: .*access is refused")
    found = re.search(r"`sparknet resume (/\S+)` goes on there", ended.err)
    assert found, ended.err
    before = whole_rounds(server)
    server.clear()
    local = Path(found[1])
    newest = max(int(path.name.removeprefix("round-")) for path in (local / "checkpoints").glob("round-*"))
    assert newest >= before[-1]
    resumed = end(start(tmp_path / "second", "resume", local, "--set", f"run.rounds={newest + 5}"))
    assert resumed.code == 0, resumed.err
    assert json.loads((local / "result.json").read_text())["rounds"] == newest + 5


def test_an_interrupted_run_sends_what_it_has(server: S3Server, tmp_path: Path) -> None:
    first = start(tmp_path / "first", "train", CONFIG, "--run-dir", URI, *LONG)
    wait_for_rounds(server, first, 20)
    first.terminate()
    ended = end(first)
    assert ended.code == 130, ended.err
    assert f"go on with: sparknet resume {URI}" in ended.err
    assert events(server)[-1]["event"] == "run_stopped"
    told = [event["round"] for event in events(server) if event["event"] == "checkpoint"]
    assert whole_rounds(server)[-1] == max(told)
    assert not [key for key in server.keys("runs") if "/owner-" in key]
    assert not list((tmp_path / "first" / "tmp").glob("sparknet-run-*"))
