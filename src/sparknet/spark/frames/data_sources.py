"""The formats that Spark does not read, as its data sources.

`register(spark)` makes `spark.read.format("cifar10").load(path)` and its like known to a session. Options of all:
`path`, `split` (train or test: which files of a standard directory), `labels` (the file or directory that says the
labels, where the format needs one) and `s3Endpoint` (URL of an S3-compatible server).
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.types import StructType

from sparknet.data.sources.files import Location
from sparknet.data.sources.registry import FORMATS, Format
from sparknet.data.storage.place import Storage
from sparknet.errors import DataError

__all__ = ["register"]


class _Source(DataSource):
    def schema(self) -> str:
        form, where = self._format(), self._where()
        if form.rows == "fixed":
            return "image binary, label bigint"
        image = "array<float>" if form.describe(where).input.dtype == "float32" else "binary"
        return f"name string, image {image}, label bigint, error string"

    def reader(self, schema: StructType) -> DataSourceReader:
        return _Reader(self.name(), self._where())

    def _format(self) -> Format:
        return FORMATS[self.name()]

    def _where(self) -> Location:
        split = self.options.get("split", "train")
        if split != "train" and split != "test":
            raise DataError(f"option split is {split!r}; it must be 'train' or 'test'")
        return Location(
            path=self.options.get("path", ""),
            split=split,
            labels=self.options.get("labels", ""),
            storage=Storage(s3_endpoint=self.options.get("s3Endpoint", "")),
        )


class DigitsSource(_Source):
    """`spark.read.format("digits").load()`: scikit-learn's 8x8 digits."""

    @classmethod
    def name(cls) -> str:
        """What `format` takes."""
        return "digits"


class Cifar10Source(_Source):
    """`spark.read.format("cifar10").load(path)`: CIFAR-10 binary batches; option `split`."""

    @classmethod
    def name(cls) -> str:
        """What `format` takes."""
        return "cifar10"


class MnistSource(_Source):
    """`spark.read.format("mnist").load(path)`: IDX files, plain or gzipped; option `split`."""

    @classmethod
    def name(cls) -> str:
        """What `format` takes."""
        return "mnist"


class LmdbSource(_Source):
    """`spark.read.format("lmdb").load(path)`: LMDB databases of Caffe's Datum records."""

    @classmethod
    def name(cls) -> str:
        """What `format` takes."""
        return "lmdb"


class ImageTarSource(_Source):
    """`spark.read.format("image_tar").load(path)`: tar files of images; option `labels`: the labels' file."""

    @classmethod
    def name(cls) -> str:
        """What `format` takes."""
        return "image_tar"


class ImageFolderSource(_Source):
    """`spark.read.format("image_folder").load(path)`: a directory of images for each class.

    Option `labels`: the directory whose sub-directories number the classes, if it is another.
    """

    @classmethod
    def name(cls) -> str:
        """What `format` takes."""
        return "image_folder"


class _UnitPartition(InputPartition):
    def __init__(self, unit: Any) -> None:
        super().__init__(unit)


class _Reader(DataSourceReader):
    def __init__(self, name: str, where: Location) -> None:
        self._name = name
        self._where = where

    def partitions(self) -> list[InputPartition]:
        return [_UnitPartition(unit) for unit in FORMATS[self._name].units(self._where)]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        form = FORMATS[self._name]
        batches = form.read(partition.value, self._where.storage)
        return map(_as_binary, batches) if form.rows == "fixed" else batches


def _as_binary(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rename a reader's fixed-size lists of bytes to binary, which Spark has; the bytes are not copied."""
    image: Any = batch.column(0)
    width = image.type.list_size
    flat = image.flatten()
    offsets = pa.array(flat.offset + width * np.arange(len(image) + 1, dtype=np.int32))
    buffers = [None, offsets.buffers()[1], flat.buffers()[1]]
    binary = pa.BinaryArray.from_buffers(pa.binary(), len(image), buffers)
    return pa.RecordBatch.from_arrays([binary, batch.column(1)], names=["image", "label"])


_SOURCES = (DigitsSource, Cifar10Source, MnistSource, LmdbSource, ImageTarSource, ImageFolderSource)
_registered: WeakSet[SparkSession] = WeakSet()


def register(spark: SparkSession) -> None:
    """Make the formats of `FORMATS` known to a session; a second call does nothing."""
    if spark not in _registered:
        for source in _SOURCES:
            spark.dataSource.register(source)
        _registered.add(spark)
