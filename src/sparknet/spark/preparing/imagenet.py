"""ImageNet's archives become shuffled tar chunks: one Spark job that reads, decodes, shuffles and writes.

Tasks read pieces of the archive and make the images; Spark's shuffle sorts them by chunk and place on the workers'
disks; then one task for each chunk streams its rows into a tar file. No task ever holds a chunk in memory.
"""

import itertools
import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparknet.data.export.imagenet_chunks import write_chunks
from sparknet.data.export.imagenet_job import Work
from sparknet.data.export.imagenet_pieces import Piece, Row, piece_bytes, read_piece
from sparknet.data.export.imagenet_plan import Layout, Plan
from sparknet.data.storage.place import Place
from sparknet.spark.jobs.error_translation import spark_errors
from sparknet.spark.jobs.jobs import run_job

__all__ = ["Progress", "make_chunks"]

_POLL_SECONDS = 0.5
_ROWS_AT_ONCE = 64
"""Rows of an Arrow batch: of 256 x 256 images about 2 MB."""
_BATCH_BYTES = 4 << 20

_PIECES = pa.schema(
    {
        "key": pa.int64(),
        "start": pa.int64(),
        "stop": pa.int64(),
        "names": pa.list_(pa.string()),
        "places": pa.list_(pa.int64()),
        "home": pa.int64(),
    }
)
_ROWS = pa.schema(
    {
        "key": pa.int64(),
        "chunk": pa.int64(),
        "place": pa.int64(),
        "kind": pa.string(),
        "name": pa.string(),
        "reason": pa.string(),
        "image": pa.binary(),
    }
)
_ROWS_DDL = "key bigint, chunk bigint, place bigint, kind string, name string, reason string, image binary"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far one split is."""

    pieces_read: int
    pieces: int
    """Tasks that read the archive, in this pass over it."""
    chunks_done: int
    """With those that were there before."""
    chunks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reading:
    """What a task must know that reads the archive."""

    plan: Plan
    archive: Place
    keys: dict[int, int]
    """For each chunk to be made: the value by which Spark sends its rows to a task of its own."""


def make_chunks(
    spark: SparkSession, work: Work, *, passes: int = 1, watch: Callable[[Progress], None] | None = None
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
    step = -(-len(todo) // passes) if todo else 1
    for first in range(0, len(todo), step):
        done = len(work.kept) + first
        _make(session, work, todo[first : first + step], done=done, watch=watch or (lambda progress: None))


def _session_of_our_own(spark: SparkSession) -> SparkSession:
    """A session with its own settings in the same application."""
    session = spark.newSession()
    # Adaptive execution would merge small chunks into one task, and cut the job so that its progress is hidden.
    session.conf.set("spark.sql.adaptive.enabled", "false")
    session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(_ROWS_AT_ONCE))
    return session


def _make(
    spark: SparkSession, work: Work, chunks: Sequence[int], *, done: int, watch: Callable[[Progress], None]
) -> None:
    doing = f"making the {work.plan.split} chunks"
    pieces = work.pieces_for(frozenset(chunks))
    group = f"sparknet-imagenet-{secrets.token_hex(8)}"

    def job() -> None:
        tasks = list(_tasks(pieces, piece_bytes(work.plan.source_bytes)))
        keys = dict(zip(chunks, _keys(spark, len(chunks)), strict=True))
        reading = _Reading(plan=work.plan, archive=work.archive, keys=keys)
        spark.sparkContext.setJobGroup(group, doing)
        (
            _frame(spark, tasks)
            .mapInArrow(partial(_read_pieces, reading), _ROWS_DDL)
            .repartition(len(chunks), "key")
            .sortWithinPartitions("chunk", "place", "name")
            .mapInArrow(partial(_write_chunks, work.layout), "chunk bigint")
            .collect()
        )

    def tell(read: int, pieces: int, written: int) -> None:
        made = Progress(
            pieces_read=read, pieces=pieces, chunks_done=done + written, chunks=work.plan.settings.chunks
        )
        watch(made)

    with spark_errors(doing), _watching(spark, group, tell):
        run_job(spark, job, doing=doing)


def _tasks(pieces: Iterable[Piece], least_bytes: int) -> Iterator[list[Piece]]:
    """Neighbours together, until a task has enough to be worth its start."""
    task, size = list[Piece](), 0
    for piece in pieces:
        task.append(piece)
        size += piece.stop - piece.start
        if size >= least_bytes:
            yield task
            task, size = [], 0
    if task:
        yield task


def _frame(spark: SparkSession, tasks: Sequence[Sequence[Piece]]) -> DataFrame:
    """A row for each piece, and a partition for each task."""
    rows = [
        {"key": key, **{name: getattr(piece, name) for name in _PIECES.names[1:]}}
        for key, task in zip(_keys(spark, len(tasks)), tasks, strict=True)
        for piece in task
    ]
    return spark.createDataFrame(pa.Table.from_pylist(rows, _PIECES)).repartition(len(tasks), "key")


def _keys(spark: SparkSession, count: int) -> list[int]:
    """A value for each of `count` partitions that Spark's hash sends there and no other does.

    Repartitioned by numbers 0 to `count` - 1, a third of the partitions would be empty and others have several.
    """
    found = dict[int, int]()
    step = 16 * count + 256
    for first in itertools.count(0, step):
        numbers = spark.range(first, first + step, 1, 1)
        table = numbers.select("id", F.pmod(F.hash("id"), F.lit(count)).alias("partition")).toArrow()
        for number, partition in zip(*(column.to_pylist() for column in table.columns), strict=True):
            found.setdefault(partition, number)
        if len(found) == count:
            break
    return [found[partition] for partition in range(count)]


def _read_pieces(reading: _Reading, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The first task: runs in a Python worker, for some pieces of the archive."""
    for batch in batches:
        for values in batch.to_pylist():
            piece = Piece(
                start=values["start"],
                stop=values["stop"],
                names=tuple(values["names"]),
                places=tuple(values["places"]),
                home=values["home"],
            )
            yield from _batches(read_piece(reading.plan, reading.archive, piece, reading.keys), reading.keys)


def _batches(rows: Iterable[Row], keys: dict[int, int]) -> Iterator[pa.RecordBatch]:
    taken, size = list[dict[str, Any]](), 0
    for row in rows:
        taken.append({"key": keys[row.chunk], **row._asdict()})
        size += len(row.image)
        if len(taken) >= _ROWS_AT_ONCE or size >= _BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(taken, _ROWS)
            taken, size = [], 0
    if taken:
        yield pa.RecordBatch.from_pylist(taken, _ROWS)


def _write_chunks(layout: Layout, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The second task: runs in a Python worker, for the sorted rows of a chunk."""
    rows = (Row(**values) for batch in batches for values in batch.drop_columns(["key"]).to_pylist())
    for report in write_chunks(layout, rows):
        yield pa.record_batch({"chunk": pa.array([report.chunk], pa.int64())})


@contextmanager
def _watching(spark: SparkSession, group: str, tell: Callable[[int, int, int], None]) -> Generator[None]:
    """Ask Spark meanwhile how many tasks of the group's job are done: reading, of how many, and writing."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_POLL_SECONDS):
            told = _tasks_done(spark, group)
            if told is not None:
                tell(*told)

    thread = threading.Thread(target=look, name="watch-chunks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _tasks_done(spark: SparkSession, group: str) -> tuple[int, int, int] | None:
    """None before the job has its stages."""
    tracker = spark.sparkContext.statusTracker()
    for number in tracker.getJobIdsForGroup(group):
        job = tracker.getJobInfo(number)
        if job is None or len(job.stageIds) < 2:
            continue
        # Stages are numbered in the order of their needs: of all, the last but one reads and the last writes.
        reading, writing = (tracker.getStageInfo(stage) for stage in sorted(job.stageIds)[-2:])
        if reading is not None:
            return reading.numCompletedTasks, reading.numTasks, writing.numCompletedTasks if writing else 0
    return None
