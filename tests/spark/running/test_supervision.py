"""A run that ends takes its tasks with it, also in a session that is the user's, and leaves that session usable."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from pyspark.sql import SparkSession

from sparknet.errors import ClusterError
from sparknet.spark.jobs.ports import DriverHost
from sparknet.spark.running import supervision
from sparknet.spark.running.driver_service import DriverService
from sparknet.spark.running.supervision import Supervision
from sparknet.spark.running.worker_jobs import WorkerJobs
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
    with DriverService(
        coordinator, Checkpoints(tmp_path, 2), at=DriverHost(host="127.0.0.1"), token="t"
    ) as service:
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
            (directory / f"beat-{os.getpid()}").touch()
            time.sleep(0.05)
        yield from ()

    return beat


def until(holds, seconds=30.0):
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, "it never came to that"
        time.sleep(0.05)


class Deaf:
    """Two workers that ignore the end, each a job of its own."""

    def __init__(self, spark, directory):
        self._spark, self._directory = spark, directory

    def jobs(self, **options):
        task = deaf(self._directory)
        return WorkerJobs(self._spark, lambda slot, attempt: task, **{"slots": 2, "most_failures": 3, **options})

    def running(self):
        return len(list(self._directory.glob("beat-*"))) >= 2

    def silent(self):
        """Whether nobody has beaten for a second."""
        beats = [path.stat().st_mtime for path in self._directory.glob("beat-*")]
        return time.time() - max(beats) > 1.0

    def check_ended(self):
        check_idle(self._spark)
        until(self.silent)


def check_idle(spark):
    until(lambda: list(spark.sparkContext.statusTracker().getActiveJobsIds()) == [])
    until(lambda: not [one for one in threading.enumerate() if one.name in ("spark-job", "spark-cancel")])
    assert spark.range(5).count() == 5, "the session is still usable"


def test_workers_that_ignore_the_end_of_the_run_are_cancelled(spark, service, tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "_FINISH_SECONDS", 2.0)
    workers = Deaf(spark, tmp_path)

    def end(event, **_):
        until(workers.running)
        service.locked(lambda coordinator: coordinator.fail("the disk is full"))

    service.events.put({"event": "note"})
    with pytest.raises(ClusterError, match="the disk is full"):
        Supervision(workers.jobs(), service, end).run()
    workers.check_ended()


def test_an_interrupt_ends_the_tasks(spark, service, tmp_path):
    workers = Deaf(spark, tmp_path)

    def interrupt(event, **_):
        until(workers.running)
        raise KeyboardInterrupt

    service.events.put({"event": "note"})
    with pytest.raises(KeyboardInterrupt):
        Supervision(workers.jobs(), service, interrupt).run()
    workers.check_ended()


def test_a_slot_that_waits_for_a_core_holds_no_end_up(spark, service, tmp_path):
    workers = Deaf(spark, tmp_path)

    def finish(event, **_):
        until(workers.running)
        service.locked(lambda coordinator: coordinator.fail("enough"))

    service.events.put({"event": "note"})
    began = time.monotonic()
    with pytest.raises(ClusterError, match="enough"):
        Supervision(workers.jobs(slots=5), service, finish).run()
    assert time.monotonic() - began < supervision._FINISH_SECONDS + 30
    workers.check_ended()


def counting(directory, ends):
    """Tasks that leave a file for each attempt and end as they are told: well, with an error, or by death."""

    def task_of(slot, attempt):
        def task(batches):
            import os

            from pyspark import TaskContext

            for _ in batches:
                pass
            if TaskContext.get().attemptNumber() == 0:
                (directory / f"{slot}-{attempt}").touch()
                if ends == "raises":
                    raise ValueError("no such file")
                if ends == "dies":
                    os._exit(1)
            yield from ()

        return task

    return task_of


@pytest.mark.parametrize("ends", ["well", "raises", "dies"])
def test_the_driver_counts_failures_whatever_the_session_allows(spark, service, tmp_path, ends):
    """local[2] ends a job with its first failure."""
    told = []
    jobs = WorkerJobs(spark, counting(tmp_path, ends), slots=2, most_failures=3)
    with pytest.raises(ClusterError, match=r"worker \d ended 3 times in a row.*raise cluster\.task_failures"):
        Supervision(jobs, service, lambda event, **_: told.append(event)).run()
    attempts = [tuple(map(int, path.name.split("-"))) for path in tmp_path.iterdir()]
    numbers = [attempt for _, attempt in attempts]
    assert sorted(numbers) == list(range(1, len(numbers) + 1)), "one count for all slots"
    assert 3 in (sum(slot == one for slot, _ in attempts) for one in (0, 1))
    check_idle(spark)


def test_a_slot_that_takes_part_in_between_may_fail_for_ever(spark, tmp_path):
    jobs = WorkerJobs(spark, counting(tmp_path, "raises"), slots=1, most_failures=2)
    jobs.start()
    for _ in range(6):
        until(jobs.ended)
        (gone,) = jobs.ended()
        jobs.begin_again([gone], {0: gone[1]})
    until(jobs.ended)
    (gone,) = jobs.ended()
    with pytest.raises(ClusterError, match=r"2 times in a row.*Spark said: .*"):
        jobs.begin_again([gone], {0: gone[1] - 1})
    jobs.end(10.0, aware={})
    check_idle(spark)


def test_a_slot_that_is_given_up_for_its_silence_leaves_no_job(spark, tmp_path):
    workers = Deaf(spark, tmp_path)
    jobs = workers.jobs(slots=1, most_failures=1)
    jobs.start()
    until(lambda: list(tmp_path.glob("beat-*")))
    with pytest.raises(ClusterError, match=r"worker 0 ended 1 times in a row.*it fell silent"):
        jobs.begin_again([(0, 1)], {})
    jobs.end(0.0, aware={})
    workers.check_ended()


def test_a_silent_worker_is_replaced_while_its_task_goes_on(spark, tmp_path):
    workers = Deaf(spark, tmp_path)
    jobs = workers.jobs(slots=1, most_failures=9)
    jobs.start()
    until(lambda: list(tmp_path.glob("beat-*")))
    (first,) = tmp_path.glob("beat-*")
    os.kill(int(first.name.removeprefix("beat-")), signal.SIGSTOP)
    # Told twice, and begun once, when the first one can be dead.
    jobs.begin_again([(0, 1), (0, 1)], {})
    until(lambda: jobs.begin_again([(0, 1)], {}) or workers.running())
    assert jobs.ended() == [], "the second attempt goes on, and what is told of the first one again changes nothing"
    jobs.end(0.0, aware={})
    workers.check_ended()


def test_a_session_that_ended_ends_the_run_at_once(tmp_path):
    """In a process of its own: the session is this process's one."""
    program = """
import sys, time
from pyspark.sql import SparkSession
from sparknet.spark.running.worker_jobs import GaveUp, WorkerJobs

def task_of(slot, attempt):
    def task(batches):
        import time
        for _ in batches:
            pass
        time.sleep(60)
        yield from ()
    return task

spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
jobs = WorkerJobs(spark, task_of, slots=1, most_failures=100)
jobs.start()
spark.stop()
until = time.monotonic() + 60
while time.monotonic() < until:
    try:
        jobs.begin_again(jobs.ended(), {})
    except GaveUp as error:
        print(error)
        break
    time.sleep(0.05)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False
    )
    assert "the Spark session has ended" in done.stdout, done.stdout + done.stderr
