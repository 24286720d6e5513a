"""A run that ends takes its tasks with it, also in a session that is the user's, and leaves that session usable."""

import os
import sys
import time

import pytest
from pyspark.sql import SparkSession

from sparknet.errors import ClusterError
from sparknet.spark.running import supervision
from sparknet.spark.running.driver_service import DriverService
from sparknet.spark.running.supervision import Supervision
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import Rules
from sparknet.training.run_files.checkpoint import Checkpoints

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark():
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2]").appName("user's own").config("spark.ui.enabled", "false")
    session = builder.config("spark.driver.host", "127.0.0.1").getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


@pytest.fixture
def service(tmp_path):
    coordinator = Coordinator(Rules(slots=2, rounds=1, plan=RoundPlan(local_steps=1)), now=time.monotonic())
    with DriverService(coordinator, Checkpoints(tmp_path, 2), host="127.0.0.1", token="t") as service:
        yield service


def deaf(directory):
    """A task that hears of no end; it beats into a file of its own for two minutes."""

    def beat(batches):
        import os
        import time

        for _ in batches:
            pass
        give_up = time.monotonic() + 120
        while time.monotonic() < give_up:
            (directory / f"beat-{os.getpid()}").write_text(str(time.monotonic()), encoding="utf-8")
            time.sleep(0.05)
        yield from ()

    return beat


def until(holds, seconds=30.0):
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, "it never came to that"
        time.sleep(0.05)


class Deaf:
    """Two workers that ignore the end."""

    def __init__(self, spark, directory):
        self._spark, self._directory = spark, directory

    def __call__(self):
        self._spark.range(0, 2, 1, 2).mapInArrow(deaf(self._directory), "id bigint").collect()

    def running(self):
        return len(list(self._directory.glob("beat-*"))) == 2

    def silent(self):
        """Whether nobody has beaten for a second."""
        beats = [float(path.read_text(encoding="utf-8") or "inf") for path in self._directory.glob("beat-*")]
        return time.monotonic() - max(beats) > 1.0

    def check_ended(self):
        assert list(self._spark.sparkContext.statusTracker().getActiveJobsIds()) == []
        until(self.silent)
        assert self._spark.range(5).count() == 5, "the session is still usable"


def test_workers_that_ignore_the_end_of_the_run_are_cancelled(spark, service, tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "_FINISH_SECONDS", 2.0)
    workers = Deaf(spark, tmp_path)

    def end(event, **_):
        until(workers.running)
        service.locked(lambda coordinator: coordinator.fail("the disk is full"))

    service.events.put({"event": "note"})
    with pytest.raises(ClusterError, match="the disk is full"):
        Supervision(spark, service, end).run(workers)
    workers.check_ended()


def test_an_interrupt_ends_the_tasks(spark, service, tmp_path):
    workers = Deaf(spark, tmp_path)

    def interrupt(event, **_):
        until(workers.running)
        raise KeyboardInterrupt

    service.events.put({"event": "note"})
    with pytest.raises(KeyboardInterrupt):
        Supervision(spark, service, interrupt).run(workers)
    workers.check_ended()
