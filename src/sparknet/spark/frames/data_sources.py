"""The formats that Spark does not read, as its data sources, for Spark users who never train.

`register(spark)` makes `spark.read.format("cifar10").load(path)` and its like known to a session. Options of all:
`path`, `split` (train or test: which files of a standard directory), `labels` (the file or directory that says the
labels, where the format needs one) and `s3Endpoint` (URL of an S3-compatible server).
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any
from weakref import WeakSet

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import StructType

from sparknet.data.sources.files import Location
from sparknet.data.sources.opening import OpenedSource
from sparknet.data.sources.registry import FORMATS, Format
from sparknet.data.storage.place import Storage
from sparknet.errors import DataError
from sparknet.spark.frames.input_partitions import row_schema

__all__ = ["register"]


class _Source(DataSource):
    """One format; a subclass says which."""

    form: Format

    def schema(self) -> StructType:
        return from_arrow_schema(row_schema(self._opened))

    def reader(self, schema: StructType) -> DataSourceReader:
        return _Reader(self._opened)

    # Spark asks for the schema in one process and for the reader in another, to which this object travels with what
    # it has opened: an archive is indexed once.
    @cached_property
    def _opened(self) -> OpenedSource:
        split = self.options.get("split", "train")
        if split != "train" and split != "test":
            raise DataError(f"option split is {split!r}; it must be 'train' or 'test'")
        where = Location(
            path=self.options.get("path", ""),
            split=split,
            labels=self.options.get("labels", ""),
            storage=Storage(s3_endpoint=self.options.get("s3Endpoint", "")),
        )
        assert self.form.reader is not None, "only these are registered"
        return OpenedSource(format=self.form, where=where, source=self.form.reader.open_source(where))


class _Partition(InputPartition):
    def __init__(self, value: Any) -> None:
        super().__init__(value)


class _Reader(DataSourceReader):
    def __init__(self, opened: OpenedSource) -> None:
        self._partitions = opened.listed.partitions
        self._read = opened.reader.read
        self._storage = opened.where.storage

    def partitions(self) -> list[InputPartition]:
        return [_Partition(part) for part in self._partitions]

    def __getstate__(self) -> dict[str, Any]:
        # Spark pickles the reader with every task, and each partition besides for its own.
        return {**self.__dict__, "_partitions": ()}

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        return self._read(partition.value, self._storage)


def _source_of(name: str, form: Format) -> type[_Source]:
    """Spark knows a data source by what its class method `name` says."""
    return type(f"{name}_source", (_Source,), {"form": form, "name": classmethod(lambda cls: name)})


# Spark warns when a name is registered again. Weak, so that a stopped session is not kept for ever.
_registered: WeakSet[SparkSession] = WeakSet()


def register(spark: SparkSession) -> None:
    """Make the formats of `FORMATS` that have a reader known to a session; a second call does nothing."""
    if spark not in _registered:
        for name, form in FORMATS.items():
            if form.reader is not None:
                spark.dataSource.register(_source_of(name, form))
        _registered.add(spark)
