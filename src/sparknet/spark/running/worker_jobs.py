"""The workers from the driver's side: a Spark job for each slot, begun again for as long as the run goes on.

A slot's job is pending until a core is free, is cancelled alone when its worker hangs, and is begun again by the
driver and not by Spark: how often a worker may fail is the run's to say, whatever the session, and a week of
preempted machines ends no run whose workers get on in between.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql import SparkSession

from sparknet.errors import ClusterError
from sparknet.spark.jobs.jobs import SessionEnded, TaggedJob

__all__ = ["GaveUp", "SlotTask", "WorkerJobs"]

SlotTask = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]
"""What runs on a worker; it must travel."""
_PAUSE_SECONDS = 0.5
_MOST_DOUBLINGS = 4
_DYING_SECONDS = 3.0
"""So long a worker that fell silent may still hold its GPU: Spark kills its process 2 s after the cancel
(`spark.python.task.killTimeout`)."""


class GaveUp(ClusterError):
    """A slot failed too often in a row, or there is no Spark to begin it again.

    Attributes:
        slot: which one.
    """

    def __init__(self, slot: int, reason: str) -> None:
        super().__init__(reason)
        self.slot = slot


@dataclass(eq=False, kw_only=True, slots=True)
class _Slot:
    number: int
    attempt: int = 0
    job: TaggedJob[object] | None = None
    """That of the attempt; None: it has ended, and the next one is due."""
    due: float = 0.0
    failures: int = 0
    """In a row: since an attempt of the slot took part in a committed round."""


class WorkerJobs:
    """The jobs of a run. Only one thread may use it, which need not be a job's own.

    Args:
        spark: the session.
        task: what an attempt runs, by slot and attempt.
        slots: how many workers there are.
        most_failures: with so many in a row a slot is given up.
    """

    def __init__(
        self, spark: SparkSession, task: Callable[[int, int], SlotTask], *, slots: int, most_failures: int
    ) -> None:
        self._spark = spark
        self._task = task
        self._most_failures = most_failures
        self._slots = [_Slot(number=number) for number in range(slots)]
        # One count for all slots: an attempt's number is the run's own, and only rises.
        self._numbers = itertools.count(1)
        self._given_up: list[TaggedJob[object]] = []

    def start(self) -> None:
        """Begin a job for every slot."""
        for slot in self._slots:
            self._begin(slot)

    def ended(self) -> list[tuple[int, int]]:
        """(slot, attempt) of the jobs that have ended and were not begun again."""
        return [(slot.number, slot.attempt) for slot in self._slots if slot.job is not None and slot.job.ended]

    def begin_again(self, gone: list[tuple[int, int]], took_part: Mapping[int, int]) -> None:
        """Let the next attempt of these slots begin, after a short pause where they have failed before.

        Args:
            gone: (slot, attempt) of jobs that have ended, or whose worker fell silent; attempts that have a
                successor already are left alone.
            took_part: by slot the newest attempt that took part in a committed round.

        Raises:
            GaveUp: a slot has failed too often in a row, or the session has ended.
        """
        for number, attempt in gone:
            slot = self._slots[number]
            if slot.attempt == attempt and slot.job is not None:
                self._count_failure(slot, slot.job, proven=took_part.get(number) == attempt)
        now = time.monotonic()
        for slot in self._slots:
            if slot.job is None and slot.due <= now:
                self._begin(slot)

    def end(self, patience_seconds: float, *, aware: Mapping[int, int]) -> None:
        """Wait for the workers to end by themselves, then cancel the jobs of those that have not.

        Args:
            patience_seconds: for either.
            aware: by slot the attempt that hears of the end; the jobs of others, which may wait for a core or still
                build their net, are cancelled at once.
        """
        for slot in self._slots:
            if slot.job is not None and aware.get(slot.number) != slot.attempt:
                slot.job.give_up()
        jobs = [*self._given_up, *(slot.job for slot in self._slots if slot.job is not None)]
        try:
            _join(jobs, patience_seconds)
        finally:  # a second interrupt cuts the patience short
            for job in jobs:
                job.give_up()
        _join(jobs, patience_seconds)

    def _begin(self, slot: _Slot) -> None:
        slot.attempt = next(self._numbers)
        number, task, spark = slot.number, self._task(slot.number, slot.attempt), self._spark

        def work() -> object:
            return spark.range(number, number + 1, 1, 1).mapInArrow(task, "slot bigint").collect()

        slot.job = TaggedJob(spark, work)

    def _count_failure(self, slot: _Slot, job: TaggedJob[object], *, proven: bool) -> None:
        slot.job = None
        slot.failures = 1 if proven else slot.failures + 1
        silent = not job.ended
        if silent:
            # Not waited for: a Python worker that hangs may be long about it.
            job.give_up()
            self._given_up = [one for one in self._given_up if not one.ended] + [job]
        if isinstance(job.error, SessionEnded):
            raise GaveUp(slot.number, str(job.error))
        if slot.failures >= self._most_failures:
            last = "it fell silent" if silent else _reason(job)
            raise GaveUp(
                slot.number,
                f"worker {slot.number} ended {slot.failures} times in a row before it took part in a round; the "
                f"last time {last}; see the reasons in events.jsonl and the executors' logs, or raise "
                "cluster.task_failures",
            )
        # The first time at once: a machine that was taken away says nothing of the next one.
        pause = _PAUSE_SECONDS * 2 ** min(slot.failures - 2, _MOST_DOUBLINGS) if slot.failures > 1 else 0.0
        slot.due = time.monotonic() + max(pause, _DYING_SECONDS if silent else 0.0)


def _join(jobs: list[TaggedJob[object]], patience_seconds: float) -> None:
    give_up = time.monotonic() + patience_seconds
    for job in jobs:
        job.join(max(0.0, give_up - time.monotonic()))


def _reason(job: TaggedJob[object]) -> str:
    lines = str(job.error or "").strip().splitlines()
    return f"Spark said: {lines[0]}" if lines else "its task ended or Spark lost it"
