"""Formats that Spark does not read, as Spark data sources: `spark.read.format("cifar10").load(path)`.

`register(spark)` makes `digits`, `cifar10` and `mnist` known to a session. Rows have the columns
`image binary` (uint8 in (channels, height, width) order) and `label bigint`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.types import StructType

from sparknet.config import Data
from sparknet.data import cifar, digits, mnist
from sparknet.data.columns import MOST_CLASSES, Column
from sparknet.data.units import Split, Unit, local_path
from sparknet.errors import DataError

__all__ = [
    "FORMATS",
    "Format",
    "SourceRows",
    "check_source",
    "expected_rows",
    "read_source",
    "register",
    "source_files",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A reader of `sparknet.data` as Spark sees it."""

    columns: tuple[Column, Column]
    """Input and label, as the reader's batches have them."""
    classes: int
    """Labels are below this."""
    units: Callable[[str, Split], list[Unit]]
    """Lists what a path holds; raises DataError."""
    files: Callable[[str, Split], list[Path]]
    """Lists the files behind those units; raises DataError."""
    read: Callable[[Unit], Iterator[pa.RecordBatch]]
    """Yields a unit's rows."""


def _no_path(path: str, split: Split) -> list[Unit]:
    if path or split != "train":
        raise DataError(
            f"digits: path {path!r}, split {split!r}; the digits have neither files nor a test split: leave "
            "both out and hold out a share (data.validation_fraction)"
        )
    return digits.units()


FORMATS: dict[str, Format] = {
    "digits": Format(
        columns=digits.COLUMNS,
        classes=digits.CLASSES,
        units=_no_path,
        files=lambda path, split: [],
        read=digits.read,
    ),
    "cifar10": Format(
        columns=cifar.COLUMNS,
        classes=cifar.CLASSES,
        units=lambda path, split: cifar.units(path, split=split),
        files=lambda path, split: cifar.files(path, split=split),
        read=cifar.read,
    ),
    "mnist": Format(
        columns=mnist.COLUMNS,
        classes=mnist.CLASSES,
        units=lambda path, split: mnist.units(path, split=split),
        files=lambda path, split: mnist.files(path, split=split),
        read=mnist.read,
    ),
}
"""The formats by the name that Spark knows them by, which is also `data.source`."""


class _Source(DataSource):
    def schema(self) -> str:
        return "image binary, label bigint"

    def reader(self, schema: StructType) -> DataSourceReader:
        return _Reader(self.name(), path=self.options.get("path", ""), split=self.options.get("split", "train"))


class DigitsSource(_Source):
    """`spark.read.format("digits").load()`: scikit-learn's 8x8 digits."""

    @classmethod
    def name(cls) -> str:
        """What `format` takes."""
        return "digits"


class Cifar10Source(_Source):
    """`spark.read.format("cifar10").load(path)`: CIFAR-10 binary batches; option `split`: train or test."""

    @classmethod
    def name(cls) -> str:
        """What `format` takes."""
        return "cifar10"


class MnistSource(_Source):
    """`spark.read.format("mnist").load(path)`: IDX files, plain or gzipped; option `split`: train or test."""

    @classmethod
    def name(cls) -> str:
        """What `format` takes."""
        return "mnist"


class _UnitPartition(InputPartition):
    def __init__(self, unit: Unit) -> None:
        super().__init__(unit)


class _Reader(DataSourceReader):
    def __init__(self, name: str, *, path: str, split: str) -> None:
        if split != "train" and split != "test":
            raise DataError(f"option split is {split!r}; it must be 'train' or 'test'")
        self._name = name
        self._path = path
        self._split: Split = split

    def partitions(self) -> list[InputPartition]:
        units = FORMATS[self._name].units(self._path, self._split)
        return [_UnitPartition(unit) for unit in units]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        for batch in FORMATS[self._name].read(partition.value):
            yield _for_spark(batch)


def _for_spark(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rename a reader's fixed-size lists of bytes to binary, which Spark has; the bytes are not copied."""
    image: Any = batch.column(0)
    width = image.type.list_size
    flat = image.flatten()
    offsets = pa.array(flat.offset + width * np.arange(len(image) + 1, dtype=np.int32))
    buffers = [None, offsets.buffers()[1], flat.buffers()[1]]
    binary = pa.BinaryArray.from_buffers(pa.binary(), len(image), buffers)
    return pa.RecordBatch.from_arrays([binary, batch.column(1)], names=["image", "label"])


_registered: WeakSet[SparkSession] = WeakSet()


def register(spark: SparkSession) -> None:
    """Make the formats digits, cifar10 and mnist known to a session; a second call does nothing."""
    if spark not in _registered:
        for source in (DigitsSource, Cifar10Source, MnistSource):
            spark.dataSource.register(source)
        _registered.add(spark)


def source_files(data: Data, *, validation: bool) -> list[Path]:
    """List the files of a source other than Parquet; the digits have none.

    Raises:
        DataError: a file is missing.
    """
    path, split = _path_and_split(data, validation=validation)
    return FORMATS[data.source].files(path, split)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRows:
    """What a source's rows are, as far as it can be said without reading them."""

    input: Column
    label: Column
    classes: int


def expected_rows(data: Data) -> SourceRows | None:
    """What the rows of a source will be; None where only reading them tells."""
    form = FORMATS.get(data.source)
    shape = data.shape or (form.columns[0].shape if form else ())
    if not shape:
        return None
    return SourceRows(
        input=Column(name=data.image, dtype=form.columns[0].dtype if form else "float32", shape=shape),
        label=Column(name=data.label, dtype="int64", shape=()),
        classes=data.classes or (form.classes if form else MOST_CLASSES),
    )


def check_source(data: Data, *, validation: bool) -> None:
    """Look at what a source's path names, without a session: what is wrong at first sight costs no Spark start.

    Raises:
        DataError: a local path is missing or damaged.
    """
    path, split = _path_and_split(data, validation=validation)
    if data.source != "parquet":
        FORMATS[data.source].units(path, split)


def read_source(spark: SparkSession, data: Data, *, validation: bool) -> DataFrame:
    """Open `data.source` as a DataFrame.

    Args:
        spark: the session.
        data: names source and path.
        validation: read `data.validation_path` instead of `data.path`; of a standard directory, its test
            files.

    Raises:
        DataError: a local path is missing or damaged.
    """
    path, split = _path_and_split(data, validation=validation)
    if data.source == "parquet":
        return spark.read.parquet(path)
    FORMATS[data.source].units(path, split)  # Spark would report what is wrong here in sixty lines
    register(spark)
    reader = spark.read.format(data.source).option("split", split)
    return reader.load(str(local_path(path).absolute())) if path else reader.load()


def _path_and_split(data: Data, *, validation: bool) -> tuple[str, Split]:
    if validation and not data.validation_path:
        raise DataError("data.validation_path is ''; a second source needs one: set data.validation_path")
    path = data.validation_path if validation else data.path
    if data.source == "parquet":
        _check_local(path)
    return path, "test" if validation else "train"


def _check_local(path: str) -> None:
    """Refuse a local path that is not there; globs and remote paths are left to Spark."""
    if "://" in path and not path.startswith("file:"):
        return
    place = local_path(path)
    if not set("*?[{") & set(str(place)) and not Path(place).exists():
        raise DataError(f"{path}: no such file or directory; correct data.path or data.validation_path")
