"""Watching a run: the Spark job in a thread of its own, its events, its hung tasks and its end."""

import queue
from collections.abc import Callable
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.utils import is_remote

from sparknet.errors import ClusterError, WorkerError
from sparknet.spark.jobs.jobs import TaggedJob
from sparknet.spark.running.driver_service import DriverService

__all__ = ["Supervision"]

_FINISH_SECONDS = 10.0
"""How long workers may take to end by themselves before their Spark job is cancelled."""
_STOP_SECONDS = 1.5
"""The same after an interrupt or an error on the driver."""


class Supervision:
    """Watches the Spark job of a run and tells what happens until it has ended."""

    def __init__(self, spark: SparkSession, service: DriverService, tell: Callable[..., None]) -> None:
        self._spark = spark
        self._service = service
        self._tell = tell

    def run(self, work: Callable[[], object]) -> None:
        """Run the workers' job and return when the run is finished.

        Args:
            work: places the workers and waits for them.

        Raises:
            SparkNetError: it failed.
            KeyboardInterrupt: it was interrupted; the workers have ended.
        """
        job = TaggedJob(self._spark, work)
        try:
            self._watch(job)
        except BaseException as error:
            # The coordinator first: workers that hear of the end leave by themselves and close what they hold.
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
            self._service.locked(lambda coordinator: coordinator.stop(reason))
            _end_job(job, _STOP_SECONDS)
            raise
        # The run is over once the coordinator says so; Spark's job ends some moments after, when every worker has
        # heard.
        _end_job(job, _FINISH_SECONDS)
        self._tell_events()
        self._judge(job.error)

    def _watch(self, job: TaggedJob[object]) -> None:
        while not job.ended:
            # This wait paces the loop. It is short because a task that hangs is freed between two of them.
            self._tell_events(wait_seconds=0.1)
            self._free_hung_tasks()
            if self._service.locked(lambda coordinator: coordinator.ended):
                return

    def _tell_events(self, wait_seconds: float = 0.0) -> None:
        try:
            event = (
                self._service.events.get(timeout=wait_seconds)
                if wait_seconds
                else self._service.events.get_nowait()
            )
            while True:
                self._tell(str(event.pop("event")), **event)
                event = self._service.events.get_nowait()
        except queue.Empty:
            return

    def _free_hung_tasks(self) -> None:
        """Spark never notices a task that hangs; killing its attempt makes it start another."""
        while True:
            try:
                _, attempt = self._service.lost.get_nowait()
            except queue.Empty:
                return
            # Connect has no call for one task: there a hung one ends with its job, or when its executor is lost.
            if not is_remote():
                # By Spark's number of the attempt, never by slot: the slot may have a new attempt, which is
                # healthy. One that has ended meanwhile is not found, and nothing happens.
                context: Any = self._spark.sparkContext
                context._jsc.sc().killTaskAttempt(attempt, True, "the worker fell silent")

    def _judge(self, error: BaseException | None) -> None:
        status, reason, culprit, last = self._service.locked(
            lambda c: (c.status, c.reason, c.culprit, c.last_error)
        )
        # Whatever became of Spark's job: a task that was killed after the last commit takes nothing from the
        # result.
        if status == "finished":
            return
        if status not in ("stopped", "failed"):
            culprit = last  # Spark gave up first: what the worker said last is why
        if culprit is not None:
            raise WorkerError(
                slot=culprit.slot, host=culprit.host, phase=culprit.phase, cause=culprit.cause
            ) from error
        # Without Spark's error as its cause, which is only the consequence of what the coordinator decided.
        if reason:
            raise ClusterError(reason)
        lines = str(error).strip().splitlines() if error else []
        raise ClusterError(
            f"Spark ended the workers' job before the run was finished: "
            f"{lines[0] if lines else 'no reason given'}; "
            "if workers kept failing, the reasons are in events.jsonl; raise cluster.task_failures (in a "
            "session of your own: spark.task.maxFailures, or F in local[N,F]) to tolerate more"
        ) from error


def _end_job(job: TaggedJob[object], patience_seconds: float) -> None:
    """Give the workers time to hear of the end, then cancel what is left."""
    try:
        job.join(patience_seconds)
    finally:  # a second interrupt cuts the patience short
        if not job.ended:
            job.cancel(patience_seconds)
