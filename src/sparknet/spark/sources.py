"""Where rows come from: `data.source` as a DataFrame."""

from dataclasses import dataclass

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from sparknet.config import Data
from sparknet.data.columns import MOST_CLASSES, Column
from sparknet.data.formats import FORMATS, SourceRows
from sparknet.data.storage import Facts, Storage
from sparknet.data.units import Location, local_path
from sparknet.errors import DataError
from sparknet.spark.data_sources import register

__all__ = [
    "FORMATS",
    "ExpectedRows",
    "SourceRows",
    "check_source",
    "expected_rows",
    "locate",
    "read_source",
    "register",
    "source_files",
]

_COLOURS = 3
"""Channels of encoded images when decoded, unless data.shape says otherwise."""
_NO_FILE_SYSTEM = ("No FileSystem for scheme", "S3AFileSystem not found")
"""How Hadoop says that it lacks a library."""


def locate(data: Data, *, validation: bool) -> Location:
    """Where the rows are: the training rows, or those of `data.validation_path`.

    Raises:
        DataError: there is no such path.
    """
    if validation and not data.validation_path:
        raise DataError("data.validation_path is ''; a second source needs one: set data.validation_path")
    labels = data.validation_labels if validation else data.labels
    if validation and data.source == "image_folder" and data.path:
        labels = data.path  # the training images number the classes
    return Location(
        path=data.validation_path if validation else data.path,
        split="test" if validation else "train",
        labels=labels,
        storage=Storage(s3_endpoint=data.s3_endpoint),
    )


def source_files(data: Data, *, validation: bool) -> list[Facts]:
    """List the files of a source of `FORMATS`; the digits have none.

    Raises:
        DataError: a file is missing.
    """
    return FORMATS[data.source].files(locate(data, validation=validation))


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedRows:
    """What will reach a net, in the shape that it is given."""

    input: Column
    label: Column
    classes: int
    """Labels are below this; `MOST_CLASSES` where only the rows tell."""


def expected_rows(data: Data) -> ExpectedRows | None:
    """What the rows of a source will be; None where only reading them tells.

    Raises:
        DataError: the source is missing or damaged.
    """
    form = FORMATS.get(data.source)
    rows = form.describe(locate(data, validation=False)) if form else None
    shape = data.shape or _shape(rows, data)
    if not shape:
        return None
    return ExpectedRows(
        input=Column(name=data.image, dtype=rows.input.dtype if rows else "float32", shape=shape),
        label=Column(name=data.label, dtype="int64", shape=()),
        classes=data.classes or (rows and rows.classes) or MOST_CLASSES,
    )


def _shape(rows: SourceRows | None, data: Data) -> tuple[int, ...]:
    if rows is None:
        return ()
    if rows.encoded and data.resize:
        return (_COLOURS, *data.resize)
    return rows.input.shape


def check_source(data: Data, *, validation: bool) -> None:
    """Look at what a source's path names, without a session: what is wrong at first sight costs no Spark start.

    Raises:
        DataError: the path is missing or damaged.
    """
    where = locate(data, validation=validation)
    if data.source in FORMATS:
        FORMATS[data.source].check(where)
    else:
        _check_local(where.path)


def read_source(spark: SparkSession, data: Data, *, validation: bool) -> DataFrame:
    """Open `data.source` as a DataFrame.

    Args:
        spark: the session.
        data: names source and path.
        validation: read `data.validation_path` instead of `data.path`; of a standard directory, its test
            files.

    Raises:
        DataError: the path is missing or damaged, or Spark lacks what it takes to reach it.
    """
    check_source(data, validation=validation)  # Spark would report what is wrong here in sixty lines
    where = locate(data, validation=validation)
    if data.source not in FORMATS:
        return _read_by_spark(spark, data, where.path)
    register(spark)
    places = {"path": where.path, "labels": where.labels}
    # Spark plans in a process of its own, which may run in another directory.
    options = {key: where.storage.place(path).uri for key, path in places.items() if path}
    reader = spark.read.format(data.source).option("split", where.split)
    return reader.options(s3Endpoint=where.storage.s3_endpoint, **options).load()


def _read_by_spark(spark: SparkSession, data: Data, path: str) -> DataFrame:
    path = str(local_path(path)) if path.startswith("~") else path
    try:
        if data.source == "parquet":
            return spark.read.parquet(path)
        return spark.read.csv(
            path,
            header=data.header,
            inferSchema=True,
            ignoreLeadingWhiteSpace=True,
            ignoreTrailingWhiteSpace=True,
        )
    except (PySparkException, Py4JError) as error:
        if not any(sign in str(error) for sign in _NO_FILE_SYSTEM):
            raise
        scheme = path.split("://", 1)[0]
        raise DataError(
            f"{path}: this Spark has nothing to read {scheme}:// with; {data.source} is read by Spark itself: "
            "name the files as s3a:// and start Spark with the hadoop-aws package of its Hadoop version "
            "(spark.jars.packages), or copy them to where every worker reaches them"
        ) from None


def _check_local(path: str) -> None:
    """Refuse a local path that is not there; globs and remote paths are left to Spark."""
    if "://" in path and not path.startswith("file:"):
        return
    place = local_path(path)
    if not set("*?[{") & set(str(place)) and not place.exists():
        raise DataError(f"{path}: no such file or directory; correct data.path or data.validation_path")
