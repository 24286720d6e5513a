"""A hook of a run: its jobs hold nothing up, and what they raise fails the run."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from digits import CONFIG, open_test_session, read_events
from sparknet.config import load_config
from sparknet.errors import CheckpointError
from sparknet.spark.running.run import train
from sparknet.training.caffe_runs.open_run import open_run
from sparknet.training.objectives.objective import Objective
from sparknet.training.run_files.checkpoint import Checkpoints, Saved
from sparknet.training.run_files.run_dir import RunDir
from sparknet.training.run_files.run_hook import SideJob, Tell

pytestmark = pytest.mark.spark

PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    session = open_test_session("local[2,8]")
    yield session
    session.stop()


class Hook:
    """Does one job, with the first checkpoint."""

    def __init__(self, work: SideJob) -> None:
        self._work = work
        self._given = False

    def begin(self, objective: Objective, checkpoints: Checkpoints, tell: Tell) -> Saved | None:
        return None

    def start(self, objective: Objective, run_dir: Path, rounds: int) -> None:
        self.seen = (objective.name, rounds)

    def on_checkpoint(self, round: int, iteration: int, directory: Path) -> SideJob | None:
        assert directory.name == f"round-{round:06d}"
        assert iteration > 0
        if self._given:
            return None
        self._given = True
        return self._work


def run(
    spark: SparkSession, tmp_path: Path, hook: Hook, observe: Callable[[dict[str, Any]], None], rounds: int
) -> None:
    settings = [f"run.rounds={rounds}", "run.checkpoint_every=5", "run.eval_every=0", "run.workers=2"]
    start = open_run(load_config(CONFIG, settings))
    with RunDir.create(tmp_path / "run", start.config) as opened:
        train(replace(start, hook=hook), opened, spark=spark, observers=[observe])


def test_a_hung_worker_is_replaced_while_a_job_is_done(spark: SparkSession, tmp_path: Path) -> None:
    pids: dict[int, int] = {}
    replaced = threading.Event()

    def observe(record: dict[str, Any]) -> None:
        if record["event"] == "worker_joined":
            if record["slot"] in pids:
                replaced.set()
            pids[record["slot"]] = record["pid"]
        if record["event"] == "job_done":
            raise KeyboardInterrupt  # what was to be seen has been seen

    def work() -> Mapping[str, object]:
        os.kill(pids[1], signal.SIGSTOP)
        return {"event": "job_done", "replaced": replaced.wait(PATIENCE_SECONDS)}

    with pytest.raises(KeyboardInterrupt):
        run(spark, tmp_path, Hook(work), observe, rounds=100_000)
    (done,) = [event for event in read_events(tmp_path / "run") if event["event"] == "job_done"]
    assert done["replaced"]


def test_what_a_job_raises_fails_the_run(spark: SparkSession, tmp_path: Path) -> None:
    def work() -> Mapping[str, object]:
        raise CheckpointError("the disk is full")

    hook = Hook(work)
    with pytest.raises(CheckpointError, match="the disk is full"):
        run(spark, tmp_path, hook, lambda record: None, rounds=100_000)
    events = read_events(tmp_path / "run")
    assert (events[-1]["event"], events[-1]["error"]) == ("run_failed", "the disk is full")
    assert hook.seen == ("digits_cnn", 100_000)
    assert not [event for event in events if event["event"] == "side_job_done"]
