"""Watching a run: the Spark job in a thread of its own, its events, its hung tasks and its end."""

import queue
import secrets
import threading
from collections.abc import Callable
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.utils import is_remote

from sparknet.errors import ClusterError, WorkerError
from sparknet.spark.running.driver_service import DriverService
from sparknet.spark.running.worker_task import WorkerPlan, run_workers

__all__ = ["Supervision"]

_FINISH_SECONDS = 10.0
"""How long workers may take to end by themselves before their Spark job is cancelled."""
_STOP_SECONDS = 1.5
"""The same after an interrupt or an error on the driver."""


class Supervision:
    """Runs the Spark job in a thread of its own and tells what happens until it has ended."""

    def __init__(self, spark: SparkSession, service: DriverService, tell: Callable[..., None]) -> None:
        self._spark = spark
        self._service = service
        self._tell = tell
        self._tag = f"sparknet-{secrets.token_hex(8)}"
        self._error: BaseException | None = None
        self._ended = threading.Event()

    def run(self, plan: WorkerPlan) -> None:
        """Return when the run is finished.

        Raises:
            SparkNetError: it failed.
            KeyboardInterrupt: it was interrupted; the workers have ended.
        """
        thread = threading.Thread(target=self._job, args=(plan,), name="spark-job", daemon=True)
        thread.start()
        try:
            self._watch()
        except BaseException as error:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
            self._service.locked(lambda coordinator: coordinator.stop(reason))
            self._end_job(thread, _STOP_SECONDS)
            raise
        self._end_job(thread, _FINISH_SECONDS)
        self._tell_events()
        self._judge()

    def _job(self, plan: WorkerPlan) -> None:
        try:
            self._spark.addTag(self._tag)
            run_workers(self._spark, plan)
        except BaseException as error:  # handed to the main thread, which judges it
            self._error = error
        finally:
            self._ended.set()

    def _watch(self) -> None:
        while not self._ended.is_set():
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
            if not is_remote():
                context: Any = self._spark.sparkContext
                context._jsc.sc().killTaskAttempt(attempt, True, "the worker fell silent")

    def _end_job(self, thread: threading.Thread, patience_seconds: float) -> None:
        """Give the workers time to hear of the end, then cancel what is left."""
        try:
            thread.join(patience_seconds)
        finally:  # a second interrupt cuts the patience short
            if thread.is_alive():
                self._spark.interruptTag(self._tag)
                thread.join(patience_seconds)

    def _judge(self) -> None:
        status, reason, culprit, last = self._service.locked(
            lambda c: (c.status, c.reason, c.culprit, c.last_error)
        )
        if status == "finished":
            return
        if status not in ("stopped", "failed"):
            culprit = last  # Spark gave up first: what the worker said last is why
        if culprit is not None:
            raise WorkerError(
                slot=culprit.slot, host=culprit.host, phase=culprit.phase, cause=culprit.cause
            ) from self._error
        if reason:
            raise ClusterError(reason)
        lines = str(self._error).strip().splitlines() if self._error else []
        raise ClusterError(
            f"Spark ended the workers' job before the run was finished: "
            f"{lines[0] if lines else 'no reason given'}; "
            "if workers kept failing, the reasons are in events.jsonl; raise cluster.task_failures (in a "
            "session of your own: spark.task.maxFailures, or F in local[N,F]) to tolerate more"
        ) from self._error
