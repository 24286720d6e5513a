"""The driver dies, is interrupted or resumed, as a user at a terminal sees it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from digits import BAR, CONFIG, read_events
from sparknet.training.run_files.checkpoint import WEIGHTS
from sparknet.training.run_files.run_dir import RunDir

pytestmark = [pytest.mark.spark, pytest.mark.chaos]

LONG = ["--set", "run.rounds=4000", "--set", "run.checkpoint_every=10", "--set", "run.eval_every=0"]


def sparknet(*arguments: str | Path) -> "subprocess.Popen[str]":
    """The real command in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "sparknet.cli.main", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_round(process: "subprocess.Popen[str]", run_dir: Path, round: int) -> list[psutil.Process]:
    """Block until the run has committed `round`; the processes that it consists of."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        events = read_events(run_dir) if (run_dir / "events.jsonl").exists() else []
        if any(event["event"] == "round" and event["round"] >= round for event in events):
            return psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)  # polling a file that another process writes
    raise AssertionError(f"round {round} was not reached in 120 s")


def assert_gone(processes: list[psutil.Process], seconds: float) -> None:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not alive, f"still there after {seconds} s: {alive}"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_killed_driver_resumes_and_loses_little(run_dir: Path) -> None:
    process = sparknet("train", CONFIG, "--run-dir", run_dir, *LONG)
    children = wait_for_round(process, run_dir, 35)
    process.kill()
    process.communicate()
    assert_gone(children, 10)
    reached = max(event["round"] for event in read_events(run_dir) if event["event"] == "round")
    newest = max((run_dir / "checkpoints").glob("round-*"))
    assert int(newest.name.removeprefix("round-")) > reached - 10
    (newest / WEIGHTS).write_bytes(b"damaged on purpose")

    total = reached + 20
    resumed = sparknet("resume", run_dir, "--workers", "3", "--set", f"run.rounds={total}")
    out, err = resumed.communicate(timeout=150)
    assert resumed.returncode == 0, err
    assert "damaged" in out
    (note,) = [event for event in read_events(run_dir) if event["event"] == "run_resumed"]
    assert note["skipped"] == [str(newest)]
    # The newest checkpoint was damaged on purpose, so it is the one before: at most twice checkpoint_every.
    assert reached - 20 <= note["round"] < reached
    assert note["round"] % 10 == 0
    with RunDir.reopen(run_dir) as opened:
        result = opened.load_result()
    assert result is not None
    assert result["rounds"] == total
    assert result["workers"] == 3
    assert result["accuracy"] >= BAR

    again = sparknet("resume", run_dir)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "finished" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_ends_everything_within_five_seconds(run_dir: Path, number: signal.Signals) -> None:
    process = sparknet("train", CONFIG, "--run-dir", run_dir, *LONG)
    children = wait_for_round(process, run_dir, 12)
    workers = [child for child in children if "python" in child.name()]
    assert len(workers) >= 2
    began = time.monotonic()
    # Ctrl-C reaches the whole foreground process group, workers and Java machine included.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    assert_gone(workers, 5)
    assert time.monotonic() - began < 5
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert f"sparknet resume {run_dir}" in err
    assert "Traceback" not in err
    assert read_events(run_dir)[-1]["event"] == "run_stopped"
    assert_gone(children, 10)


def test_a_suspended_driver_costs_no_steps(run_dir: Path) -> None:
    """A laptop that sleeps: its workers give up meanwhile, new ones go on, and no round counts untrained steps."""
    process = sparknet("train", CONFIG, "--run-dir", run_dir, "--set", "run.rounds=60")
    wait_for_round(process, run_dir, 25)
    process.send_signal(signal.SIGSTOP)
    wait_until_suspended_for(6.0)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    rounds = [event for event in read_events(run_dir) if event["event"] == "round"]
    assert {event["steps"] / len(event["slots"]) for event in rounds if event["round"] > 40} == {10}
    assert rounds[-1]["round"] == 60
    with RunDir.reopen(run_dir) as opened:
        result = opened.load_result()
    assert result is not None
    assert result["accuracy"] >= BAR


def wait_until_suspended_for(seconds: float) -> None:
    time.sleep(seconds)  # the length of the pause is the fault itself, nothing is waited for
