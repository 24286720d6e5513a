"""Short jobs on the workers: what each finds comes back as data, and so does what went wrong.

A task of ours that raised would be tried again, as often as Spark allows, and would reach the user as a stack
trace of the Java machine. So the error is caught in the task and travels as one more report.
"""

import functools
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.utils import is_remote

from sparknet.errors import ClusterError, ConfigError, DataError, MissingDependency, SparkNetError, WorkerError
from sparknet.spark.jobs.error_translation import spark_errors

__all__ = ["Report", "SessionEnded", "TaggedJob", "Task", "collect_reports", "numbered", "run_job", "stay"]

T = TypeVar("T")

Task = Callable[[Iterator[pa.RecordBatch]], Iterable[dict[str, Any]]]
"""What runs on a worker: takes the partition's Arrow batches, gives reports that JSON can hold."""
_TOLD_AS_THEY_ARE = {kind.__name__: kind for kind in (ConfigError, DataError, MissingDependency)}
"""What is wrong whichever worker meets it, so that naming the worker would lead astray."""
_LAST_WORD_SECONDS = 5.0
"""How long a job that is cancelled may take to end."""
_CANCEL_AGAIN_SECONDS = 0.5
_STAY_SECONDS = 0.5
_CANCEL_FOR_SECONDS = 60.0
"""What has not begun to be a job by then never will."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One report of one task."""

    slot: int
    """The task's partition."""
    host: str
    values: dict[str, Any]


def numbered(spark: SparkSession, numbers: int, *, tasks: int) -> DataFrame:
    """The numbers 0 to `numbers` - 1 in the column `id`, for `tasks` tasks, without a shuffle."""
    # A job behind a shuffle runs its stage again when an executor dies, and a partition then twice at once.
    return spark.range(0, numbers, 1, tasks)


def stay() -> None:
    """In a task that asks from where it is: do not end at once, which would leave other executors unasked."""
    time.sleep(_STAY_SECONDS)


def collect_reports(
    frame: DataFrame,
    task: Task,
    *,
    doing: str,
    limit_seconds: float | None = None,
    group: str = "",
    at_once: bool = False,
) -> list[Report]:
    """Run `task` on every partition of `frame` and return all reports, by slot.

    Args:
        frame: what the tasks get.
        task: a module-level function, or a `functools.partial` of one with a frozen plan.
        doing: what the tasks do, for messages ("testing the model").
        limit_seconds: when to give up; not given: never.
        group: the Spark job group, by which a classic session's status tracker finds the job.
        at_once: all tasks run at the same time, as a barrier stage, in which they can wait for each other.

    Raises:
        SparkNetError: a task found the data, the settings or what is installed at fault.
        WorkerError: a task failed in another way; names worker, host, phase and cause.
        ClusterError: Spark failed, or the time was up.
    """
    # Reports are JSON in one column, whatever the task: each kind in types of Spark's would need a schema of its
    # own.
    guarded = functools.partial(_guarded, task)
    frame = frame.mapInArrow(guarded, "slot int, host string, error string, report string", at_once)
    spark = frame.sparkSession

    def job() -> list[Any]:
        if group:
            spark.sparkContext.setJobGroup(group, doing)  # known to this thread alone, which `run_job` has made
        return frame.collect()

    with spark_errors(doing):
        # `collect` by the job's own thread: in the main one an interrupt would cut the talk with the Java machine.
        rows = run_job(spark, job, doing=doing, limit_seconds=limit_seconds)
    for row in rows:
        if row.error in _TOLD_AS_THEY_ARE:
            raise _TOLD_AS_THEY_ARE[row.error](row.report)
        if row.error:
            raise WorkerError(slot=row.slot, host=row.host, phase=doing, cause=row.report)
    reports = [Report(slot=row.slot, host=row.host, values=json.loads(row.report)) for row in rows]
    return sorted(reports, key=lambda report: report.slot)


def _guarded(task: Task, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The task: runs in a Python worker, once for each partition."""
    # The number is the partition's: Spark keeps it when it tries a task again on another machine.
    context = TaskContext.get()
    assert context is not None, "Spark runs this in a task"
    error = ""
    try:
        found = [json.dumps(report) for report in task(batches)]
    except Exception as raised:  # the driver raises it again, in words
        ours = isinstance(raised, SparkNetError)
        error = type(raised).__name__
        found = [str(raised) if ours else f"{error}: {raised}"]
    yield pa.record_batch(
        {
            "slot": pa.array([context.partitionId()] * len(found), pa.int32()),
            "host": pa.array([socket.gethostname()] * len(found), pa.string()),
            "error": pa.array([error] * len(found), pa.string()),
            "report": pa.array(found, pa.string()),
        }
    )


class SessionEnded(ClusterError):
    """There is no Spark any more to run a job."""


class TaggedJob(Generic[T]):
    """What waits for Spark, in a thread of its own and under a tag of its own, by which it can be ended.

    A thread that is interrupted while it talks to the Java machine loses that connection, with pages of traces:
    so the main thread, which gets the interrupts, must not be the one that talks.

    Attributes:
        error: what the work raised; None while it goes on, and after an end without error.
    """

    def __init__(self, spark: SparkSession, work: Callable[[], T]) -> None:
        """Begin.

        Args:
            spark: the session of the job, which may be the user's: only this job of it is ever cancelled.
            work: calls Spark and returns when it is done.
        """
        self.error: BaseException | None = None
        self._spark = spark
        self._work = work
        self._results = list[T]()
        self._ended, self._cancelled = threading.Event(), threading.Event()
        self._tag = f"sparknet-{secrets.token_hex(8)}"
        # A classic session's own tags are known to the thread alone that set them; those of its context to all.
        context = None if is_remote() else spark.sparkContext
        self._add_tag: Callable[[str], object] = spark.addTag if context is None else context.addJobTag
        self._cancel_tag: Callable[[str], object] = (
            spark.interruptTag if context is None else context.cancelJobsWithTag
        )
        # A daemon: a job that hears of no cancel must not keep the process from its end.
        threading.Thread(target=self._run, name="spark-job", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether the work has returned or raised."""
        return self._ended.is_set()

    def join(self, patience_seconds: float | None = None) -> bool:
        """Wait for the end, for at most so long; whether it has come."""
        return self._ended.wait(patience_seconds)

    def cancel(self, patience_seconds: float) -> bool:
        """End the job's tasks on the workers, and wait so long for the work to notice; whether it has ended."""
        self.give_up()
        return self.join(patience_seconds)

    def give_up(self) -> None:
        """The same without waiting; tasks that do not hear of it are Spark's to end."""
        if not self.ended and not self._cancelled.is_set():
            # Before the first call: work that has not yet begun sees it and does not begin.
            self._cancelled.set()
            threading.Thread(target=self._cancel, name="spark-cancel", daemon=True).start()

    def _cancel(self) -> None:
        until = time.monotonic() + _CANCEL_FOR_SECONDS
        # Again and again: what the work is just about to submit has no tag to be found by yet.
        while not self.ended and time.monotonic() < until:
            # Without a session there is nothing to cancel, and the work itself tells of that.
            with suppress(Exception):
                self._cancel_tag(self._tag)
            self.join(_CANCEL_AGAIN_SECONDS)

    def result(self) -> T:
        """What the work returned, once it has ended.

        Raises:
            Exception: whatever it raised.
        """
        if self.error is not None:
            raise self.error
        return self._results[0]

    def _run(self) -> None:
        try:
            _require_session(self._spark)
            # In this thread, which submits the jobs: Spark copies tags from the thread that submits.
            self._add_tag(self._tag)
            if self._cancelled.is_set():
                raise ClusterError("the job was cancelled before it began; run it again")
            self._results.append(self._work())
        except BaseException as error:  # raised again by the thread that waits
            self.error = error
        finally:
            self._ended.set()


def _require_session(spark: SparkSession) -> None:
    """Raise where the session has ended; Spark's own calls tell of that in many ways, some of them late."""
    try:
        # Each asks the other side and runs no job.
        _ = spark.range(1).schema if is_remote() else spark.sparkContext.defaultParallelism
    except Exception as error:  # py4j, gRPC and Spark raise many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise SessionEnded(
            f"the Spark session has ended ({lines[0]}): open another one and run this again"
        ) from error


def run_job(spark: SparkSession, job: Callable[[], T], *, doing: str, limit_seconds: float | None = None) -> T:
    """Run what waits for Spark as a `TaggedJob`; end it when the user interrupts or the time is up.

    Args:
        spark: the session of the job.
        job: calls Spark and returns when it is done.
        doing: what the job does, for messages.
        limit_seconds: when to give up; not given: never.

    Raises:
        ClusterError: the time was up.
        Exception: whatever `job` raised.
    """
    running = TaggedJob(spark, job)
    try:
        if not running.join(limit_seconds):
            raise ClusterError(
                f"{doing} took more than {limit_seconds:g} s; Spark must have a free core for every worker: give "
                "it more, wait until others have left theirs, or lower --workers"
            )
    finally:
        # Also after an interrupt: a job that is left alone goes on in a session that may be the user's.
        if not running.ended:
            running.cancel(_LAST_WORD_SECONDS)
    return running.result()
