"""A source written in another format by a Spark job: LMDB databases as Caffe has them, or Parquet."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark import TaskContext
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import ArrayType, FloatType, LongType
from pyspark.sql.utils import is_remote

from sparknet.config import Data, decode, encode
from sparknet.data.export.write_lmdb import Converted, write_database
from sparknet.data.rows.damage import Damage
from sparknet.data.rows.reading import ReadPlan, RowReader, WholeRows
from sparknet.data.sources.opening import OpenedSource
from sparknet.data.storage.place import Place, Storage
from sparknet.errors import DataError
from sparknet.spark.frames.column_kinds import checked
from sparknet.spark.frames.read_source import read_source
from sparknet.spark.frames.select_columns import select_columns
from sparknet.spark.frames.vocabulary import learn
from sparknet.spark.jobs.error_translation import lacks_file_system, spark_errors
from sparknet.spark.jobs.jobs import collect_reports, run_job

__all__ = ["Conversion", "check_reach", "free_place", "to_lmdb", "to_parquet"]

_MOST_EXAMPLES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What came of it."""

    rows: int
    """Rows written."""
    parts: int
    """Databases, or keys."""
    damage: Damage
    """Rows that were left out."""


def to_lmdb(spark: SparkSession, opened: OpenedSource, data: Data, target: str, *, partitions: int) -> Conversion:
    """Write a source as databases that Caffe reads: `target` itself for one partition, else `part-00000` and so on.

    Args:
        spark: the session.
        opened: the source.
        data: columns, and what becomes of encoded images: `keep`, and for pixels `resize` and
            `channel_order` (bgr if not given).
        target: directory or URI that every worker reaches; nothing must be there.
        partitions: databases; fewer where there are fewer rows.

    Raises:
        DataError: the source or a row is at fault, or `target` cannot be written; then nothing is left there.
        ClusterError: Spark failed.
    """
    data = replace(data, channel_order=data.channel_order or "bgr")
    place = free_place(data, target)
    frame = _selected(spark, opened, data)
    # A shuffle for more partitions, and none for fewer, which keeps the order of the rows. Connect does not tell.
    many = partitions > 1 and (is_remote() or frame.rdd.getNumPartitions() < partitions)
    frame = frame.repartition(partitions) if many else frame.coalesce(partitions)
    draft = _Draft(place=place, hidden=uuid.uuid4().hex, alone=partitions == 1)
    plan = _DatabasePlan(rows=_plan(opened, data), draft=draft)
    try:
        reports = collect_reports(frame, partial(_write_database, plan), doing="writing databases")
        parts = [decode(Converted, report.values) for report in reports]
        damage = sum((part.damage for part in parts), Damage())
        rows = sum(part.rows for part in parts)
        _check(rows, damage, data)
        draft.publish([part for part in parts if part.rows])
    except BaseException:
        draft.discard()
        raise
    return Conversion(rows=rows, parts=sum(part.rows > 0 for part in parts), damage=damage)


def to_parquet(spark: SparkSession, opened: OpenedSource, data: Data, target: str, *, keys: int) -> Conversion:
    """Write a source as Parquet with the columns id, data and label, a directory `key=N` for each key.

    `id` is the row's number in the source, `key` is id modulo `keys`: so each key has an even sample of the rows.

    Args:
        spark: the session.
        opened: the source.
        data: as for `to_lmdb`; `channel_order` not given is rgb.
        target: directory or URI that Spark itself writes; nothing must be there.
        keys: number of keys.

    Raises:
        DataError: the source or a row is at fault, or `target` cannot be written; then nothing is left there.
        ClusterError: Spark failed.
    """
    place = free_place(data, target)
    with spark_errors(f"looking at {place}"):
        check_reach(spark, place)
    frame = _selected(spark, opened, data)
    # Rows are numbered through all partitions, and a task sees only its own: so they are counted first. Both jobs
    # cut the source alike.
    counted = {
        report.slot: report.values["rows"]
        for report in collect_reports(frame, _count_rows, doing="counting the rows")
    }
    begins = np.cumsum([0, *(counted.get(slot, 0) for slot in range(max(counted, default=0)))])
    numbers = isinstance(frame.schema["c0"].dataType, ArrayType | FloatType)
    plan = _TablePlan(rows=_plan(opened, data), begins=tuple(begins.tolist()), numbers=numbers)
    numbered = frame.mapInArrow(partial(_number_rows, plan), from_arrow_schema(_schema(plan)))
    # Counted while the rows are written: another job would decode every image again.
    seen = Observation()
    measured = numbered.observe(
        seen,
        F.count("id").alias("rows"),
        F.coalesce(F.sum("damaged"), F.lit(0)).alias("damaged"),
        F.flatten(F.collect_list("examples")).alias("examples"),
        F.max("error").alias("error"),
    )
    # Behind the observation, which must see the rows that only tell of damage; these have no number.
    whole = measured.where("id is not null").select("id", "data", "label", (F.col("id") % keys).alias("key"))
    # All rows of a key in one task: a file for each key, where every task would otherwise write a small one for
    # each.
    ordered = whole.repartition(keys, "key").sortWithinPartitions("key", "id")

    def write() -> dict[str, Any] | None:
        # Without a scheme Spark takes its default file system, which on a cluster is seldom the local one.
        ordered.write.partitionBy("key").parquet(f"file://{place.local}" if place.local else place.uri)
        # Where no row is left, adaptive execution puts an empty plan in the place of the one that observes.
        return seen.get if any(file.name.endswith(".parquet") for file in place.files(recursive=True)) else None

    try:
        with spark_errors("writing Parquet"):
            found = run_job(spark, write, doing="writing Parquet")
        if found is None:
            raise _nothing_written(frame, plan, data)
        if found["error"]:
            raise DataError(found["error"])
        damage = Damage(rows=found["damaged"], examples=tuple(found["examples"])[:_MOST_EXAMPLES])
        _check(found["rows"], damage, data)
    except BaseException:
        place.delete()
        raise
    return Conversion(rows=found["rows"], parts=min(keys, found["rows"]), damage=damage)


# -- on the driver --


def free_place(data: Data, target: str) -> Place:
    """The place that a conversion would write.

    Raises:
        DataError: there is something, or it cannot be looked at.
    """
    place = Storage(s3_endpoint=data.s3_endpoint).place(target)
    facts = place.facts()
    if facts is not None and not (facts.is_directory and not place.children(recursive=True)):
        raise DataError(f"{place}: there is something already; remove it, or give another place: --to")
    return place


def check_reach(spark: SparkSession, place: Place) -> None:
    """Find out whether Spark itself reaches a place, where it will find nothing.

    Raises:
        DataError: it has no library for it.
    """
    if place.local is not None:
        return
    try:
        # Spark finds the file system, then says that the path is not there (AnalysisException): that much is
        # wanted.
        _ = spark.read.text(place.uri).schema
    except (PySparkException, Py4JError) as error:
        if lacks_file_system(error):
            scheme = place.uri.split("://", 1)[0]
            raise DataError(
                f"{place}: this Spark has nothing to write {scheme}:// with, and it is Spark that writes there: "
                "name the place as s3a:// and start Spark with the hadoop-aws package of its Hadoop version "
                "(spark.jars.packages), or write to a directory"
            ) from None
        if not isinstance(error, AnalysisException):
            raise


def _selected(spark: SparkSession, opened: OpenedSource, data: Data) -> DataFrame:
    # A record's label is what the column says, not a number in a list of what it says elsewhere.
    data = replace(data, class_values="stored")
    with spark_errors(f"reading {opened.where.path or data.source}"):
        frame = read_source(spark, opened, data)
        selected = select_columns(frame, data, validation=None, table=learn(frame, data))
    name = data.target_names[0]
    if len(data.column_names) != 2:
        raise DataError(
            f"the columns are {', '.join(data.column_names)}; a record holds one input and one label: set "
            "data.image and data.label"
        )
    label = selected.schema["c1"].dataType
    if isinstance(label, FloatType):
        return _with_whole_labels(selected, name)
    if not isinstance(label, LongType):
        raise DataError(
            f"column {name} is {label.simpleString()}; the label of a record is a whole number: convert it, or set "
            "data.label"
        )
    return selected


def _with_whole_labels(selected: DataFrame, name: str) -> DataFrame:
    """Labels that are kept as fractions, as HDF5 files of Caffe's have them, if all of them are whole."""
    given = F.col("c1")
    whole = checked(
        given.cast("bigint"),
        given == F.floor(given),
        f"column {name} holds ",
        F.coalesce(given.cast("string"), F.lit("null")),
        "; the label of a record is a whole number: correct such rows, or set data.label",
    )
    told = [F.col("fault")] if "fault" in selected.columns else []
    return selected.withColumn("fault", F.coalesce(*told, whole.fault)).withColumn("c1", whole.cells)


def _plan(opened: OpenedSource, data: Data) -> ReadPlan:
    value, *rest = opened.read_plan(replace(data, class_values="stored")).columns
    # Files are written as they are, each of its own size.
    return ReadPlan(columns=(replace(value, check_only=value.keep == "encoded"), *rest))


def _check(rows: int, damage: Damage, data: Data) -> None:
    damage.check(rows + damage.rows, share=data.corrupt_share)
    if not rows:
        raise DataError(f"{data.path or data.source}: no rows; there must be at least one: correct the path")


# -- LMDB --


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draft:
    """Where databases lie until all of them are whole.

    On a file system in a hidden directory beside the target, which is renamed. Object stores have no rename:
    there each database appears when it is whole, and all are removed when one fails.
    """

    place: Place
    """The target."""
    hidden: str
    """Makes the hidden directory's name unique."""
    alone: bool
    """There is one database, which is the target itself."""

    @property
    def directory(self) -> Path | None:
        """The hidden directory; None in an object store."""
        local = self.place.local
        return local.with_name(f".{local.name}.{self.hidden}.part") if local else None

    def remote(self, partition: int) -> Place:
        """Where in an object store a database's file goes."""
        return self.place / ("data.mdb" if self.alone else f"{_part(partition)}/data.mdb")

    def publish(self, parts: list[Converted]) -> None:
        """Give the databases their names, and the directory its own; what failed attempts left goes.

        Raises:
            DataError: it cannot be done.
        """
        directory, target = self.directory, self.place.local
        if directory is None or target is None:
            return
        try:
            # The rename of the directory comes last: until then nothing is under the target's name.
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rmdir()  # it was empty
            if self.alone:
                (directory / parts[0].directory).rename(target)
                shutil.rmtree(directory)
                return
            for part in parts:
                (directory / part.directory).rename(directory / _part(part.partition))
            for left in set(directory.iterdir()) - {directory / _part(part.partition) for part in parts}:
                shutil.rmtree(left)
            directory.rename(target)
        except OSError as error:
            raise DataError(f"{target}: cannot be written: {error}; give another place: --to") from error

    def discard(self) -> None:
        """Remove what was written."""
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            self.place.delete()


@dataclass(frozen=True, kw_only=True, slots=True)
class _DatabasePlan:
    """Everything a task needs to know; it travels to the workers."""

    rows: ReadPlan
    draft: _Draft


def _part(partition: int) -> str:
    return f"part-{partition:05d}"


def _write_database(plan: _DatabasePlan, batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """The task: runs in a Python worker, once for each partition."""
    partition = _partition()
    # A task may be tried again or run twice at once: no attempt may touch another's files.
    name = f"{_part(partition)}-{uuid.uuid4().hex}"
    local = plan.draft.directory
    if local is not None:
        yield encode(write_database(plan.rows, batches, partition=partition, directory=local / name))
        return
    # LMDB works on a file in place, and an object store takes whole ones. There it appears whole, and a later
    # attempt's replaces it: its name needs no attempt.
    with tempfile.TemporaryDirectory(prefix="sparknet-lmdb-") as spool:
        done = write_database(plan.rows, batches, partition=partition, directory=Path(spool) / name)
        if done.rows:
            with (
                (Path(spool) / name / "data.mdb").open("rb") as file,
                plan.draft.remote(partition).writing() as out,
            ):
                shutil.copyfileobj(file, out, 8 << 20)
        yield encode(done)


# -- Parquet --


def _nothing_written(frame: DataFrame, plan: "_TablePlan", data: Data) -> DataError:
    """Why there was no row to write, found by reading them all once more."""
    reports = collect_reports(frame, partial(_read_rows, plan), doing="looking for rows")
    _check(0, sum((decode(Damage, report.values) for report in reports), Damage()), data)
    return DataError(f"{data.path or data.source}: its rows were gone when they were written; begin again")


def _read_rows(plan: "_TablePlan", batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """A task: what is wrong with its rows."""
    reader = RowReader(plan.rows, _partition())
    for _ in reader.read(batches):
        pass
    yield encode(reader.damage)


@dataclass(frozen=True, kw_only=True, slots=True)
class _TablePlan:
    """Everything a task needs to know; it travels to the workers."""

    rows: ReadPlan
    begins: tuple[int, ...]
    """Number of each partition's first row."""
    numbers: bool
    """Cells are lists of numbers, not bytes."""


def _count_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """A task."""
    yield {"rows": sum(batch.num_rows for batch in batches)}


def _number_rows(plan: _TablePlan, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """A task: whole rows with their numbers, then one row that says what was left out."""
    partition = _partition()
    reader = RowReader(plan.rows, partition)
    try:
        for rows in reader.read(batches):
            yield _table(rows, begin=plan.begins[partition])
    except DataError as error:
        # As data: an exception would be tried again as often as Spark allows, and then told as a Java stack trace.
        yield _told(plan, {"error": [str(error)]})
        return
    if reader.damage.rows:
        yield _told(plan, {"damaged": [reader.damage.rows], "examples": [list(reader.damage.examples)]})


def _told(plan: _TablePlan, said: dict[str, Any]) -> pa.RecordBatch:
    """One row that holds no cells, but what a task has to say."""
    return pa.RecordBatch.from_pylist([{name: values[0] for name, values in said.items()}], schema=_schema(plan))


def _schema(plan: _TablePlan) -> pa.Schema:
    return pa.schema(
        {
            "id": pa.int64(),
            "data": pa.list_(pa.float32()) if plan.numbers else pa.binary(),
            "label": pa.int64(),
            "damaged": pa.int64(),
            "examples": pa.list_(pa.string()),
            "error": pa.string(),
        }
    )


def _table(rows: WholeRows, *, begin: int) -> pa.RecordBatch:
    count, (value, label) = len(rows), rows.columns
    if value.name in rows.files:
        # Spark's `binary` has offsets of 32 bits, and these may be `large_binary`.
        cells = rows.files[value.name].cast(pa.binary())
    elif value.dtype == "uint8":
        cells = pa.array([row.tobytes() for row in rows.values[value.name]], pa.binary())
    else:
        # One buffer for all rows, not a list for each.
        offsets = np.arange(count + 1, dtype=np.int32) * value.width
        cells = pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.values[value.name].reshape(-1)))
    columns = {
        "id": pa.array(begin + rows.numbers),
        "data": cells,
        "label": pa.array(rows.values[label.name]),
        "damaged": pa.nulls(count, pa.int64()),
        "examples": pa.nulls(count, pa.list_(pa.string())),
        "error": pa.nulls(count, pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns)


def _partition() -> int:
    context = TaskContext.get()
    assert context is not None, "Spark runs this in a task"
    return context.partitionId()
