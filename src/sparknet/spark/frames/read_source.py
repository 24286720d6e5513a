"""Where rows come from: an opened source as a DataFrame."""

import re
from collections.abc import Sequence

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from sparknet.config import Data
from sparknet.data.sources.files import local_path
from sparknet.data.sources.opening import OpenedSource
from sparknet.data.storage.local_files import is_file_uri
from sparknet.errors import DataError
from sparknet.spark.frames.column_kinds import FAULT, checked
from sparknet.spark.frames.input_partitions import rows_frame
from sparknet.spark.jobs.error_translation import lacks_file_system

__all__ = ["read_source"]

_GLOB_LETTERS = re.compile(r"[\\*?\[\]{}]")
# Endings by which Hadoop chooses a codec.
_COMPRESSED = (".gz", ".bz2", ".zst", ".xz", ".lz4", ".snappy", ".deflate")
_MOST_SHOWN = 80
"""Characters of a line in a message."""


def read_source(spark: SparkSession, opened: OpenedSource, data: Data) -> DataFrame:
    """A source as a DataFrame.

    Args:
        spark: the session.
        opened: the source.
        data: how Spark is to read what it reads itself.

    Raises:
        DataError: Spark cannot read the files, or lacks what it takes to reach them.
    """
    return rows_frame(spark, opened) if opened.source else _read_by_spark(spark, opened, data)


def _read_by_spark(spark: SparkSession, opened: OpenedSource, data: Data) -> DataFrame:
    path = opened.where.path
    try:
        if opened.format.has_header:
            return _read_csv(spark, path, header=data.header)
        return spark.read.format(data.source).load(_as_hadoop_has_it(path))
    except (PySparkException, Py4JError) as error:
        # Only this one needs words about packages; the caller translates the others.
        if not lacks_file_system(error):
            raise
        scheme = path.split("://", 1)[0]
        raise DataError(
            f"{path}: this Spark has nothing to read {scheme}:// with; {data.source} is read by Spark itself: "
            "name the files as s3a:// and start Spark with the hadoop-aws package of its Hadoop version "
            "(spark.jars.packages), or copy them to where every worker reaches them"
        ) from None


def _read_csv(spark: SparkSession, path: str, *, header: bool) -> DataFrame:
    """Read lines as RFC 4180 has them; one with fewer or more values than the others is told of in `FAULT`."""

    def read(**options: str) -> DataFrameReader:
        reader = spark.read.options(ignoreLeadingWhiteSpace=True, ignoreTrailingWhiteSpace=True, header=header)
        # Spark's own escape is a backslash, and a doubled quote before a comma would end the value
        return reader.options(escape='"', **options)

    place = _as_hadoop_has_it(path)
    # Twice: Spark fills the column of malformed lines only where a schema names it, and infers nothing for a schema
    # that is given.
    inferred = read(inferSchema="true").csv(place).schema
    if not inferred.names:
        raise DataError(f"{path}: the file is empty; training needs rows: correct data.path")
    if header:
        _check_headers(read().csv(place).inputFiles())
    strange = "sparknet: malformed line"  # no table has such a name
    # Without pruning, which would look at no more of a line than the columns that somebody asks for.
    reader = read(columnNameOfCorruptRecord=strange, columnPruning="false")
    frame = reader.schema(StructType([*inferred.fields, StructField(strange, StringType())])).csv(place)
    # Spark refuses to read this column alone, as counting rows would: no letter of the first one is asked for too.
    first = F.substring(F.col(f"`{inferred.names[0].replace('`', '``')}`").cast("string"), 1, 0)
    line = F.col(f"`{strange}`")
    count = len(inferred.names)
    said = (f"{path}: the line '", F.substring(line, 1, _MOST_SHOWN), F.concat_ws("", first))
    rule = f"' has not {count} values as the first one has: put values with a comma in quotes, or remove the line"
    return frame.withColumn(FAULT, checked(line, line.isNull(), *said, rule).fault).drop(strange)


def _check_headers(files: Sequence[str]) -> None:
    """Hold the first lines of local files against each other; remote and compressed files are not looked at."""
    # Spark takes one file's names for the columns of all, and a first line that is written in another way for a
    # row, which makes words of numbers.
    known: dict[str, str] = {}
    for file in sorted(files):
        if not is_file_uri(file) or file.endswith(_COMPRESSED):
            continue
        # A byte order mark, as spreadsheets write it, is no part of the first name.
        with local_path(file).open(encoding="utf-8-sig", errors="replace") as lines:
            header = next((line.rstrip("\n") for line in lines if line.strip()), "")
        if header:
            # Byte for byte: another order of the same names would put values under the wrong ones just as well.
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
    # A directory named `run[1]` is one directory and no pattern; a path that is not there may be meant as one.
    return _GLOB_LETTERS.sub(r"\\\g<0>", str(local)) if local.exists() else str(local)
