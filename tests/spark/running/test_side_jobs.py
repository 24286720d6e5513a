"""Jobs beside a run: on a thread of their own, each in its turn, and nothing that they say is lost."""

import queue
import threading
from collections.abc import Mapping

import pytest

from sparknet.errors import CheckpointError
from sparknet.spark.running.side_jobs import DONE, SideJobs

PATIENCE_SECONDS = 30.0


class Job:
    """A job that is held until it is let go."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name = name
        self.began, self.go = threading.Event(), threading.Event()
        self.thread = ""
        self._error = error

    def __call__(self) -> Mapping[str, object]:
        self.thread = threading.current_thread().name
        self.began.set()
        assert self.go.wait(PATIENCE_SECONDS)
        if self._error is not None:
            raise self._error
        return {"event": "snapshot", "name": self.name}


def done(events: "queue.Queue[dict[str, object]]") -> None:
    assert events.get(timeout=PATIENCE_SECONDS) == {"event": DONE}


def test_a_job_is_done_beside_and_collected_here() -> None:
    events: queue.Queue[dict[str, object]] = queue.Queue()
    with SideJobs(events.put) as jobs:
        first = Job("first")
        jobs.submit(first)
        assert first.began.wait(PATIENCE_SECONDS)
        assert jobs.collect() == []
        first.go.set()
        done(events)
        assert jobs.collect() == [{"event": "snapshot", "name": "first"}]
        assert jobs.collect() == jobs.finish() == []
    assert first.thread != threading.current_thread().name


def test_jobs_are_done_in_their_order_and_none_is_left_out() -> None:
    with SideJobs(queue.Queue().put) as jobs:
        first, second, third = Job("first"), Job("second"), Job("third")
        jobs.submit(first)
        assert first.began.wait(PATIENCE_SECONDS)
        jobs.submit(second)
        jobs.submit(third)
        for job in (first, second, third):
            job.go.set()
        told = jobs.finish()
    assert [event["name"] for event in told] == ["first", "second", "third"]


def test_what_a_job_raises_is_raised_where_it_is_collected() -> None:
    events: queue.Queue[dict[str, object]] = queue.Queue()
    with SideJobs(events.put) as jobs:
        job = Job("first", CheckpointError("the disk is full"))
        job.go.set()
        jobs.submit(job)
        done(events)
        with pytest.raises(CheckpointError, match="disk is full"):
            jobs.collect()


def test_what_a_job_raises_at_the_end_is_raised_there() -> None:
    with SideJobs(queue.Queue().put) as jobs:
        job = Job("first", CheckpointError("the disk is full"))
        job.go.set()
        jobs.submit(job)
        with pytest.raises(CheckpointError, match="disk is full"):
            jobs.finish()


def test_a_run_that_fails_waits_for_the_job_that_is_being_done_and_for_no_other() -> None:
    first, second = Job("first", CheckpointError("the disk is full")), Job("second")

    def fail() -> None:
        with SideJobs(queue.Queue().put) as jobs:
            jobs.submit(first)
            assert first.began.wait(PATIENCE_SECONDS)
            jobs.submit(second)
            first.go.set()
            raise RuntimeError("the run failed")

    with pytest.raises(RuntimeError, match="the run failed") as caught:
        fail()
    assert not second.began.is_set()
    assert caught.value.__notes__ == ["and beside the run: the disk is full"]
    assert not any(thread.name == "side-jobs" for thread in threading.enumerate())
