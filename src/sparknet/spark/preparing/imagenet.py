"""ImageNet's archives become shuffled tar chunks: one Spark job that reads, decodes, shuffles and writes.

Tasks read pieces of the archive and make the images; Spark's shuffle sorts them by chunk and place on the workers'
disks; then one task for each chunk streams its rows into a tar file. No task ever holds a chunk in memory.
"""

import itertools
import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparknet.data.export.imagenet_chunks import write_chunk
from sparknet.data.export.imagenet_pieces import ImageRow, read_piece
from sparknet.data.export.imagenet_plan import Work
from sparknet.data.storage.place import Place
from sparknet.errors import DataError, SparkNetError
from sparknet.spark.jobs.jobs import collect_reports, numbered, run_job

__all__ = ["ChunkProgress", "make_chunks"]

_POLL_SECONDS = 0.5
_ROWS_AT_ONCE = 64
"""Rows of an Arrow batch: of 256 x 256 images about 2 MB."""
_BATCH_BYTES = 4 << 20
_ROWS = pa.schema(
    {
        "key": pa.int64(),
        "place": pa.int64(),
        "offset": pa.int64(),
        "name": pa.string(),
        "reason": pa.string(),
        "image": pa.binary(),
    }
)
_FAILED = -2
"""In the place of a row's: the archive could not be read. It sorts before all others."""
_ROWS_DDL = "key bigint, place bigint, offset bigint, name string, reason string, image binary"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkProgress:
    """How far one split is."""

    pieces_read: int
    pieces: int
    """Tasks that read the archive, in this pass over it."""
    chunks_done: int
    """With those that were there before."""
    chunks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pass:
    """One pass over the archive, as it travels to the tasks."""

    work: Work
    keys: Mapping[int, int]
    """For each chunk to be made, in the order of partitions: the value by which Spark sends its rows there."""
    failure: Place
    """A file that is there when a task could not read its part of the archive, and says why."""


def make_chunks(
    spark: SparkSession, work: Work, *, passes: int = 1, watch: Callable[[ChunkProgress], None] | None = None
) -> None:
    """Make the chunks that are not there yet; each is complete when its report is there.

    Args:
        spark: runs the job; its settings are left as they are.
        work: what is to be done.
        passes: read the archive so many times, for a part of the chunks each time. Each pass needs that share of
            the temporary disk space, and a run that is cut off loses at most the pass it was in.
        watch: called about twice a second, from another thread.

    Raises:
        DataError: the archive cannot be read or the destination cannot be written.
        ClusterError: Spark failed.
    """
    session = _session_of_our_own(spark)
    todo = work.open_chunks
    # Rounded up: no more passes than were asked for, each of which reads the whole archive.
    step = -(-len(todo) // passes) if todo else 1
    for first in range(0, len(todo), step):
        done = len(work.kept) + first
        _make(session, work, todo[first : first + step], done=done, watch=watch or (lambda progress: None))


def _session_of_our_own(spark: SparkSession) -> SparkSession:
    """A session with its own settings in the same application."""
    # The user's session keeps its settings: the application and its executors are the same.
    session = spark.newSession()
    # Adaptive execution would merge small chunks into one task, and cut the job so that its progress is hidden.
    session.conf.set("spark.sql.adaptive.enabled", "false")
    # The default of 10,000 images would be hundreds of MB in a task's memory at a time.
    session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(_ROWS_AT_ONCE))
    return session


def _make(
    spark: SparkSession, work: Work, chunks: Sequence[int], *, done: int, watch: Callable[[ChunkProgress], None]
) -> None:
    doing = f"making the {work.plan.split} chunks"
    group = f"sparknet-imagenet-{secrets.token_hex(8)}"
    keys = run_job(spark, lambda: _keys(spark, len(chunks)), doing=doing)
    # A part file of this name goes with those of killed tasks, if the driver is killed too.
    failure = work.layout.record_directory / f".{work.plan.split}.{group}.part"
    this = _Pass(work=work, keys=dict(zip(chunks, keys, strict=True)), failure=failure)
    # One row for each piece in a task of its own: the numbers travel, and what they mean is in the plan.
    pieces = numbered(spark, len(work.pieces), tasks=len(work.pieces))
    # The plan holds every piece, and Spark broadcasts what is above 1 MB: once for each executor, not for each
    # task.
    rows = pieces.mapInArrow(partial(_read_pieces, this), _ROWS_DDL)
    # Sorted on disk by Spark, which spills: grouping by chunk would hold one in memory, of at most Arrow's 2 GB.
    # `offset` decides between images of one place, so that the bytes are the same every time.
    sorted_rows = rows.repartition(len(chunks), "key").sortWithinPartitions("place", "offset")

    def tell(read: int, written: int) -> None:
        chunks = work.plan.settings.chunks
        watch(ChunkProgress(pieces_read=read, pieces=len(work.pieces), chunks_done=done + written, chunks=chunks))

    try:
        with _watching(spark, group, tell):
            collect_reports(sorted_rows, partial(_write_chunk, this), doing=doing, group=group)
    finally:
        failure.delete()


def _keys(spark: SparkSession, count: int) -> list[int]:
    """A value for each of `count` partitions that Spark's hash sends there and no other does."""
    # Repartitioned by the numbers 0 to 999 themselves, a third of the partitions would be empty and some have five.
    # `repartitionById` came with Spark 4.1, and we run on 4.0.
    found = dict[int, int]()
    step = 16 * count + 256
    for first in itertools.count(0, step):
        numbers = spark.range(first, first + step, 1, 1)
        table = numbers.select("id", F.pmod(F.hash("id"), F.lit(count)).alias("partition")).toArrow()
        for number, partition in zip(*(column.to_pylist() for column in table.columns), strict=True):
            # The smallest such value: the same on every run, though any would do.
            found.setdefault(partition, number)
        if len(found) == count:
            break
    return [found[partition] for partition in range(count)]


def _read_pieces(this: _Pass, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The first task: runs in a Python worker, for some pieces of the archive."""
    try:
        for batch in batches:
            for number in batch.column("id").to_pylist():
                if this.failure.facts():  # where one has failed, the others need not read for hours
                    raise DataError(this.failure.read().decode())
                yield from _batches(this, read_piece(this.work, this.work.pieces[number], this.keys))
    except Exception as error:
        # Raised from here it would be tried again, as often as tasks may fail.
        reason = str(error) if isinstance(error, SparkNetError) else f"{type(error).__name__}: {error}"
        if not this.failure.facts():
            this.failure.write(reason.encode())
        # The file is a help and no proof (NFS shows a new one up to a minute late), so every chunk gets a row: none
        # may be written that lacks the rest of this piece.
        yield from _batches(this, (ImageRow(chunk, _FAILED, 0, "", reason, b"") for chunk in this.keys))


def _batches(this: _Pass, rows: Iterable[ImageRow]) -> Iterator[pa.RecordBatch]:
    taken, size = list[dict[str, Any]](), 0
    for row in rows:
        taken.append({"key": this.keys[row.chunk], **row._asdict()})
        size += len(row.image)
        # By bytes too: how large an image is, is the user's choice.
        if len(taken) >= _ROWS_AT_ONCE or size >= _BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(taken, _ROWS)
            taken, size = [], 0
    if taken:
        yield pa.RecordBatch.from_pylist(taken, _ROWS)


def _write_chunk(this: _Pass, batches: Iterator[pa.RecordBatch]) -> Iterable[dict[str, Any]]:
    """The second task: runs in a Python worker, for the sorted rows of a chunk, which may be none."""
    context = TaskContext.get()
    assert context is not None, "Spark runs this in a task"
    # By its number and not by its rows, of which a chunk has none when all of its images are missing.
    chunk = list(this.keys)[context.partitionId()]
    # Row by row, as the iterator gives them: a chunk is never in memory.
    values = (values for batch in batches for values in batch.drop_columns(["key"]).to_pylist())
    write_chunk(this.work, chunk, _whole(ImageRow(chunk=chunk, **row) for row in values))
    return ()


def _whole(rows: Iterable[ImageRow]) -> Iterator[ImageRow]:
    for row in rows:
        if row.place == _FAILED:
            raise DataError(row.reason)
        yield row


@contextmanager
def _watching(spark: SparkSession, group: str, tell: Callable[[int, int], None]) -> Generator[None]:
    """Ask Spark meanwhile how many tasks of the group's job are done: reading and writing."""
    # In a thread of its own, since the main thread waits for the job, and the job's talks to the Java machine.
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_POLL_SECONDS):
            done = _tasks_done(spark, group)
            if done:
                tell(*done)

    thread = threading.Thread(target=look, name="watch-chunks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _tasks_done(spark: SparkSession, group: str) -> tuple[int, int] | None:
    """None before the job has its stages."""
    tracker = spark.sparkContext.statusTracker()
    for number in tracker.getJobIdsForGroup(group):
        job = tracker.getJobInfo(number)
        # Stages are numbered in the order of their needs: the first reads and the second writes.
        stages = [tracker.getStageInfo(stage) for stage in sorted(job.stageIds)] if job else []
        if len(stages) == 2 and stages[0]:
            return stages[0].numCompletedTasks, stages[1].numCompletedTasks if stages[1] else 0
    return None
