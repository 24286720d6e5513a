"""Jobs beside a run: on a thread of their own, one waiting at most, and nothing that they say is lost."""

import queue
import threading
from collections.abc import Mapping

import pytest

from sparknet.errors import CheckpointError
from sparknet.spark.running.side_jobs import DONE, SideJobs
from sparknet.training.run_files.run_hook import SideJob

PATIENCE_SECONDS = 30.0


class Job:
    """A job that is held until it is let go."""

    def __init__(self, name: str, error: Exception | None = None, *, late: bool = False) -> None:
        self.name = name
        self.began, self.go = threading.Event(), threading.Event()
        self.thread = ""
        self._error = error
        self._late = late

    def work(self) -> Mapping[str, object] | None:
        self.thread = threading.current_thread().name
        self.began.set()
        assert self.go.wait(PATIENCE_SECONDS)
        if self._error is not None:
            raise self._error
        return None if self._late else {"event": "snapshot", "name": self.name}

    @property
    def side_job(self) -> SideJob:
        return SideJob(work=self.work, missed=f"no {self.name}")


def done(events: "queue.Queue[dict[str, object]]") -> None:
    assert events.get(timeout=PATIENCE_SECONDS) == {"event": DONE}


def warning(name: str) -> dict[str, object]:
    return {"event": "note", "level": "warning", "message": f"no {name}"}


def test_a_job_is_done_beside_and_collected_here() -> None:
    events: queue.Queue[dict[str, object]] = queue.Queue()
    with SideJobs(events.put) as jobs:
        first = Job("first")
        jobs.submit(first.side_job)
        assert first.began.wait(PATIENCE_SECONDS)
        assert jobs.collect() == []
        first.go.set()
        done(events)
        assert jobs.collect() == [{"event": "snapshot", "name": "first"}]
        assert jobs.collect() == jobs.finish() == []
    assert first.thread != threading.current_thread().name


def test_one_job_waits_and_a_newer_one_takes_its_place() -> None:
    with SideJobs(queue.Queue().put) as jobs:
        first, second, third = Job("first"), Job("second"), Job("third")
        jobs.submit(first.side_job)
        assert first.began.wait(PATIENCE_SECONDS)
        jobs.submit(second.side_job)
        jobs.submit(third.side_job)
        for job in (first, second, third):
            job.go.set()
        told = jobs.finish()
    assert told == [
        warning("second"),
        {"event": "snapshot", "name": "first"},
        {"event": "snapshot", "name": "third"},
    ]
    assert not second.began.is_set()


def test_a_job_that_was_too_late_is_told() -> None:
    with SideJobs(queue.Queue().put) as jobs:
        job = Job("snapshot", late=True)
        job.go.set()
        jobs.submit(job.side_job)
        assert jobs.finish() == [warning("snapshot")]


def test_what_a_job_raises_is_raised_where_it_is_collected() -> None:
    events: queue.Queue[dict[str, object]] = queue.Queue()
    with SideJobs(events.put) as jobs:
        job = Job("first", CheckpointError("the disk is full"))
        job.go.set()
        jobs.submit(job.side_job)
        done(events)
        with pytest.raises(CheckpointError, match="disk is full"):
            jobs.collect()


def test_what_a_job_raises_at_the_end_is_raised_there() -> None:
    with SideJobs(queue.Queue().put) as jobs:
        job = Job("first", CheckpointError("the disk is full"))
        job.go.set()
        jobs.submit(job.side_job)
        with pytest.raises(CheckpointError, match="disk is full"):
            jobs.finish()


def test_a_run_that_fails_waits_for_the_job_that_is_being_done_and_for_no_other() -> None:
    first, second = Job("first", CheckpointError("the disk is full")), Job("second")

    def fail() -> None:
        with SideJobs(queue.Queue().put) as jobs:
            jobs.submit(first.side_job)
            assert first.began.wait(PATIENCE_SECONDS)
            jobs.submit(second.side_job)
            first.go.set()
            raise RuntimeError("the run failed")

    with pytest.raises(RuntimeError, match="the run failed") as caught:
        fail()
    assert not second.began.is_set()
    assert caught.value.__notes__ == ["and beside the run: the disk is full"]
    assert not any(thread.name == "side-jobs" for thread in threading.enumerate())
