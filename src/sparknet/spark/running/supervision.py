"""Watching a run: its workers' jobs, its events, its hung workers and its end."""

import queue
from collections.abc import Callable

from sparknet.errors import ClusterError, WorkerError
from sparknet.spark.running.driver_service import DriverService
from sparknet.spark.running.worker_jobs import GaveUp, WorkerJobs

__all__ = ["Supervision"]

_FINISH_SECONDS = 10.0
"""How long workers may take to end by themselves before their Spark jobs are cancelled."""
_STOP_SECONDS = 1.5
"""The same after an interrupt or an error on the driver."""


class Supervision:
    """Watches the workers of a run and tells what happens until it has ended."""

    def __init__(self, jobs: WorkerJobs, service: DriverService, tell: Callable[..., None]) -> None:
        self._jobs = jobs
        self._service = service
        self._tell = tell
        self._gave_up: GaveUp | None = None

    def run(self) -> None:
        """Start the workers and return when the run is finished.

        Raises:
            SparkNetError: it failed.
            KeyboardInterrupt: it was interrupted; the workers have ended.
        """
        try:
            self._jobs.start()
            self._watch()
        except BaseException as error:
            # The coordinator first: workers that hear of the end leave by themselves and close what they hold.
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
            self._service.locked(lambda coordinator: coordinator.stop(reason))
            self._end_jobs(_STOP_SECONDS)
            raise
        # The run is over once the coordinator says so; the jobs end some moments after, when every worker has
        # heard.
        self._end_jobs(_FINISH_SECONDS)
        self._tell_events()
        self._judge()

    def _watch(self) -> None:
        while True:
            # This wait paces the loop. It is short because a worker that hangs is replaced between two of them.
            self._tell_events(wait_seconds=0.1)
            # Before the look at the coordinator: a job that ended because the run did is not begun again.
            gone = self._jobs.ended() + self._silent()
            ended, took_part = self._service.locked(lambda c: (c.ended, dict(c.took_part)))
            if ended:
                return
            try:
                self._jobs.begin_again(gone, took_part)
            except GaveUp as gave_up:
                self._gave_up = gave_up
                self._service.locked(lambda coordinator, reason=str(gave_up): coordinator.fail(reason))
                return

    def _end_jobs(self, patience_seconds: float) -> None:
        aware = self._service.locked(lambda c: {member.slot: member.attempt for member in c.live()})
        self._jobs.end(patience_seconds, aware=aware)

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

    def _silent(self) -> list[tuple[int, int]]:
        """(slot, attempt) of workers that hang, which Spark never notices."""
        silent: list[tuple[int, int]] = []
        while True:
            try:
                silent.append(self._service.lost.get_nowait())
            except queue.Empty:
                return silent

    def _judge(self) -> None:
        status, reason, culprit, last = self._service.locked(
            lambda c: (c.status, c.reason, c.culprit, c.errors.last)
        )
        # Whatever became of the jobs: a task that was killed after the last commit takes nothing from the result.
        if status == "finished":
            return
        if culprit is None and self._gave_up is not None and last is not None and last.slot == self._gave_up.slot:
            culprit = last  # what the worker said itself is why
        if culprit is not None:
            raise WorkerError(
                slot=culprit.slot,
                host=culprit.host,
                phase=culprit.phase,
                cause=culprit.cause,
                trace=culprit.trace,
            ) from self._gave_up
        raise ClusterError(reason) from self._gave_up
