"""The rows of a format that is read here, in tasks: straight to whoever takes them there, or as a DataFrame.

Spark's own way to such rows, a Python data source, plans in one new process and reads in others, which costs
seconds before the first row; and between those and whoever takes the rows stands the Java machine. So the sources
of `data_sources` are for Spark users, and what is done here reads in the task that uses the rows.
"""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from sparknet.data.rows.columns import Column
from sparknet.data.rows.reading import ReadPlan
from sparknet.data.sources.opening import OpenedSource
from sparknet.data.storage.place import Storage
from sparknet.errors import DataError
from sparknet.spark.frames.column_kinds import FAULT
from sparknet.spark.jobs.jobs import numbered

__all__ = ["PartitionReader", "as_read", "numbers_in", "partition_numbers", "row_schema", "rows_frame"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionReader:
    """Reads input partitions by number; it travels to the tasks."""

    read: Callable[[Any, Storage], Iterator[pa.RecordBatch]]
    storage: Storage
    partitions: tuple[bytes, ...]
    """Each pickled for itself."""

    @classmethod
    def of(cls, *opened: OpenedSource) -> "PartitionReader":
        """All partitions of sources of one format, one source after the other."""
        return cls(
            read=opened[0].reader.read,
            storage=opened[0].where.storage,
            # In the order of the sources: whoever asked for two tells training from validation by the number alone.
            # Pickled one by one, since every task unpickles the plan: it then does not make the objects of all the
            # others, which for a million files are a million names.
            partitions=tuple(pickle.dumps(part) for one in opened for part in one.listed.partitions),
        )

    def rows(self, number: int) -> Iterator[pa.RecordBatch]:
        """One partition's rows, with the columns that `source.Reader` tells."""
        # It was pickled by this driver, a moment ago, and came as part of Spark's own task.
        return self.read(pickle.loads(self.partitions[number]), self.storage)


def partition_numbers(spark: SparkSession, count: int) -> DataFrame:
    """The numbers 0 to `count` - 1, each in a task of its own, which is the task of that number."""
    return numbered(spark, count, tasks=count)


def numbers_in(batches: Iterator[pa.RecordBatch]) -> Iterator[int]:
    """The numbers that a task of `partition_numbers` is given."""
    for batch in batches:
        yield from batch.column(0).to_pylist()


def as_read(plan: ReadPlan, batch: pa.RecordBatch, *, mark: bool | None) -> pa.RecordBatch:
    """A reader's rows with the names and in the order of `RowReader.read`."""
    columns: dict[str, Any] = {f"c{at}": batch.column(one.name) for at, one in enumerate(plan.columns)}
    if mark is not None:
        columns["validation"] = pa.repeat(pa.scalar(mark), batch.num_rows)
    columns |= {name: batch.column(name) for name in ("error", "name") if name in batch.schema.names}
    return pa.RecordBatch.from_pydict(columns)


def row_schema(opened: OpenedSource) -> pa.Schema:
    """The columns of a source's rows in Arrow: name, its own columns, error."""
    # Spark has no column of unsigned bytes but `binary`.
    own = [(column.name, _CELLS[column.dtype](column)) for column in opened.listed.schema.columns]
    named = opened.format.names_rows
    return pa.schema([*([("name", pa.string())] * named), *own, *([("error", pa.string())] * named)])


_CELLS: dict[str, Callable[[Column], pa.DataType]] = {
    "uint8": lambda column: pa.binary(),
    "float32": lambda column: pa.list_(pa.float32()) if column.shape else pa.float32(),
    "int64": lambda column: pa.list_(pa.int64()) if column.shape else pa.int64(),
}


def rows_frame(spark: SparkSession, opened: OpenedSource) -> DataFrame:
    """A source's rows as a DataFrame, with the columns of `row_schema` and `FAULT`."""
    reader = PartitionReader.of(opened)
    numbers = partition_numbers(spark, len(reader.partitions))
    schema = row_schema(opened).append(pa.field(FAULT, pa.string()))
    # Over numbers: the tasks have no shuffle before them, so Spark repeats only the one that failed.
    return numbers.mapInArrow(partial(_read_partitions, reader, schema), from_arrow_schema(schema))


def _read_partitions(
    reader: PartitionReader, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """The task; what cannot be read becomes a row that says so, since an exception would be tried again."""
    for number in numbers_in(batches):
        try:
            for batch in reader.rows(number):
                # Whole rows have no fault, but the frame's schema has the column.
                yield batch.append_column(FAULT, pa.nulls(batch.num_rows, pa.string()))
        except DataError as error:
            yield pa.RecordBatch.from_pylist([{FAULT: str(error)}], schema=schema)
