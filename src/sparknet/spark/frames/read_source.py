"""Where rows come from: `data.source` as a DataFrame."""

import re
from collections.abc import Sequence
from contextlib import suppress

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from sparknet.config import Data
from sparknet.data.rows.columns import Column
from sparknet.data.rows.image_codec import size_of
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import Location, local_path
from sparknet.data.sources.registry import FORMATS, Format, SourceRows
from sparknet.data.storage.local_files import is_file_uri
from sparknet.data.storage.place import Facts, Storage
from sparknet.errors import BadImage, DataError
from sparknet.spark.frames.column_kinds import checked
from sparknet.spark.frames.data_sources import register

__all__ = [
    "FORMATS",
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
_GLOB_LETTERS = re.compile(r"[\\*?\[\]{}]")
_COMPRESSED = (".gz", ".bz2", ".zst", ".xz", ".lz4", ".snappy", ".deflate")
_MOST_SHOWN = 80
"""Characters of a line in a message."""
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


def expected_rows(data: Data, *, validation: bool = False) -> RowSchema | None:
    """What the rows of a source will be; None where only reading them all tells.

    Images as files are looked into for their size as far as the first whole one.

    Args:
        data: the source.
        validation: the rows of `data.validation_path` in place of those of `data.path`.

    Raises:
        DataError: the source is missing or damaged.
    """
    form, where = FORMATS.get(data.source), locate(data, validation=validation)
    rows = form.describe(where) if form else None
    shape = data.shape or _shape(rows, data)
    if form and rows and rows.encoded and not shape:
        shape = _size_of_first(form, where)
    if not shape:
        return None
    return RowSchema(
        input=Column(name=data.image, dtype=rows.input.dtype if rows else "float32", shape=shape),
        label=Column(name=data.label, dtype="int64", shape=()),
        classes=data.classes or (rows.classes if rows else None),
    )


def _shape(rows: SourceRows | None, data: Data) -> tuple[int, ...]:
    if rows is None:
        return ()
    if rows.encoded and data.resize:
        return (_COLOURS, *data.resize)
    return rows.input.shape


def _size_of_first(form: Format, where: Location) -> tuple[int, ...]:
    for unit in form.units(where):
        for batch in form.read(unit, where.storage):
            for image in batch.column("image"):
                with suppress(BadImage):
                    if image.is_valid:
                        return (_COLOURS, *size_of(image.as_py()))
    return ()


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
    try:
        if data.source == "parquet":
            return spark.read.parquet(_as_hadoop_has_it(path))
        return _read_csv(spark, path, header=data.header)
    except (PySparkException, Py4JError) as error:
        if not any(sign in str(error) for sign in _NO_FILE_SYSTEM):
            raise
        scheme = path.split("://", 1)[0]
        raise DataError(
            f"{path}: this Spark has nothing to read {scheme}:// with; {data.source} is read by Spark itself: "
            "name the files as s3a:// and start Spark with the hadoop-aws package of its Hadoop version "
            "(spark.jars.packages), or copy them to where every worker reaches them"
        ) from None


def _read_csv(spark: SparkSession, path: str, *, header: bool) -> DataFrame:
    """Read lines as RFC 4180 has them; one with fewer or more values than the others raises when it is read."""

    def read(**options: str) -> DataFrameReader:
        reader = spark.read.options(ignoreLeadingWhiteSpace=True, ignoreTrailingWhiteSpace=True, header=header)
        # Spark's own escape is a backslash, and a doubled quote before a comma would end the value
        return reader.options(escape='"', **options)

    place = _as_hadoop_has_it(path)
    inferred = read(inferSchema="true").csv(place).schema
    if not inferred.names:
        raise DataError(f"{path}: the file is empty; training needs rows: correct data.path")
    if header:
        _check_headers(read().csv(place).inputFiles())
    strange = "malformed line"
    while strange in inferred.names:
        strange += "'"
    # Without pruning, which would look at no more of a line than the columns that somebody asks for.
    reader = read(columnNameOfCorruptRecord=strange, columnPruning="false")
    frame = reader.schema(StructType([*inferred.fields, StructField(strange, StringType())])).csv(place)
    # Spark refuses to read this column alone, as counting rows would: no letter of the first one is asked for too.
    first = F.substring(F.col(f"`{inferred.names[0].replace('`', '``')}`").cast("string"), 1, 0)
    line = F.col(f"`{strange}`")
    count = len(inferred.names)
    said = (f"{path}: the line '", F.substring(line, 1, _MOST_SHOWN), F.concat_ws("", first))
    rule = f"' has not {count} values as the first one has: put values with a comma in quotes, or remove the line"
    return frame.filter(checked(F.lit(True), line.isNull(), *said, rule)).drop(strange)


def _check_headers(files: Sequence[str]) -> None:
    """Hold the first lines of local files against each other; remote and compressed files are not looked at.

    Spark takes one file's names for the columns of all, and a first line that is written in another way for a row,
    which makes words of numbers.
    """
    known: dict[str, str] = {}
    for file in sorted(files):
        if not is_file_uri(file) or file.endswith(_COMPRESSED):
            continue
        with local_path(file).open(encoding="utf-8-sig", errors="replace") as lines:
            header = next((line.rstrip("\n") for line in lines if line.strip()), "")
        if header:
            known.setdefault(header, file)
        if len(known) > 1:
            (theirs, first), (ours, _) = known.items()
            raise DataError(
                f"{file}: the first line is '{ours[:_MOST_SHOWN]}', and that of {first} is "
                f"'{theirs[:_MOST_SHOWN]}'; files that are read together name the same columns in the same way: "
                "write one of them anew, or set data.header=false if they name none"
            )


def _as_hadoop_has_it(path: str) -> str:
    """The path of a local file or directory that is there, so that nothing in its name is taken for a glob."""
    if "://" in path and not is_file_uri(path):
        return path
    local = local_path(path).absolute()
    return _GLOB_LETTERS.sub(r"\\\g<0>", str(local)) if local.exists() else str(local)


def _check_local(path: str) -> None:
    """Refuse a local path that is not there; globs and remote paths are left to Spark."""
    if "://" in path and not is_file_uri(path):
        return
    place = local_path(path)
    if not set("*?[{") & set(str(place)) and not place.exists():
        raise DataError(f"{path}: no such file or directory; correct data.path or data.validation_path")
