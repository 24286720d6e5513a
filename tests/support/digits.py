"""Runs of the digits configuration in a shared session, with faults injected at given rounds."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyspark import SparkContext
from pyspark.sql import SparkSession

from places import REPOSITORY
from sparknet.config import load_config
from sparknet.spark.jobs.settings import is_local
from sparknet.spark.running.run import RunResult, train
from sparknet.training.run_files.run_dir import RunDir

CONFIG = REPOSITORY / "configs" / "digits.toml"
BAR = 0.97


def open_test_session(master: str, **settings: str) -> SparkSession:
    """A session as `sparknet train` opens it, with the pre-import daemon."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    if SparkContext._gateway is None and not is_local(master):
        # The Java machine, which all tests of a process share, keeps its first master as what was submitted.
        open_test_session("local[1]").stop()
    builder: Any = (
        SparkSession.builder.master(master)
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
    )
    builder = builder.config("spark.python.daemon.module", "sparknet.spark.running.preimport")
    builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.log.level", "OFF")
    for key, value in settings.items():
        builder = builder.config(key.replace("_", "."), value)
    return builder.getOrCreate()


class Story:
    """The events of a run, and faults that fire once at a round's commit."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.pids: dict[int, int] = {}
        self.fired: dict[str, float] = {}
        self._faults: list[tuple[str, int, Callable[[], None]]] = []

    def at_round(self, name: str, round: int, fault: Callable[[], None]) -> None:
        """Inject `fault` as soon as the commit of `round` is known."""
        self._faults.append((name, round, fault))

    def observe(self, record: dict[str, Any]) -> None:
        self.events.append(record)
        if record["event"] == "worker_joined":
            self.pids[record["slot"]] = record["pid"]
        if record["event"] == "round":
            for name, round, fault in self._faults:
                if record["round"] >= round and name not in self.fired:
                    fault()
                    self.fired[name] = record["time"]

    def kill(self, *slots: int, signal: int = 9) -> Callable[[], None]:
        def fault() -> None:
            for slot in slots:
                os.kill(self.pids[slot], signal)

        return fault

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] in kinds]

    def stillness(self, fault: str) -> float:
        """Seconds from a fault to the next committed round."""
        return min(e["time"] for e in self.of("round") if e["time"] > self.fired[fault]) - self.fired[fault]

    def back_after(self, fault: str, slot: int) -> float:
        """Seconds from a fault until the slot took part in a committed round again, healed."""
        healed = [e["time"] for e in self.of("quorum") if e["time"] > self.fired[fault] and slot in e["healed"]]
        assert healed, "the replacement never took part again"
        return min(e["time"] for e in self.of("round") if e["time"] >= healed[0]) - self.fired[fault]


def run_digits(spark: SparkSession, run_dir: Path, story: Story, *settings: str) -> RunResult:
    """Train digits with overrides, telling `story` everything."""
    config = load_config(CONFIG, [*settings, f"data.store={str(run_dir.parent / 'store')!r}"])
    with RunDir.create(run_dir, config) as opened:
        return train(config, opened, spark=spark, observers=[story.observe])


def assert_rounds_in_order(story: Story, rounds: int) -> None:
    """Every round committed exactly once, in order: no committed step was lost or done twice."""
    assert [event["round"] for event in story.of("round")] == list(range(1, rounds + 1))


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
