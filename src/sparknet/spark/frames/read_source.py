"""Where rows come from: an opened source as a DataFrame."""

import re
from collections.abc import Callable

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from sparknet.config import Data
from sparknet.data.sources.files import local_path
from sparknet.data.sources.opening import OpenedSource
from sparknet.data.storage.local_files import is_file_uri
from sparknet.errors import DataError
from sparknet.spark.frames.input_partitions import rows_frame
from sparknet.spark.frames.read_csv import read_csv
from sparknet.spark.jobs.error_translation import lacks_file_system

__all__ = ["read_source"]

_GLOB_LETTERS = re.compile(r"[\\*?\[\]{}]")


def read_source(
    spark: SparkSession, opened: OpenedSource, data: Data, *, tell: Callable[[str], None] = lambda message: None
) -> DataFrame:
    """A source as a DataFrame.

    Args:
        spark: the session.
        opened: the source.
        data: how Spark is to read what it reads itself.
        tell: is told what was found out about the files and not said.

    Raises:
        DataError: Spark cannot read the files, or lacks what it takes to reach them.
    """
    return rows_frame(spark, opened) if opened.source else _read_by_spark(spark, opened, data, tell)


def _read_by_spark(spark: SparkSession, opened: OpenedSource, data: Data, tell: Callable[[str], None]) -> DataFrame:
    path = opened.where.path
    try:
        if opened.format.has_header:
            return read_csv(spark, _as_hadoop_has_it(path), data, tell=tell)
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


def _as_hadoop_has_it(path: str) -> str:
    """The path of a local file or directory that is there, so that nothing in its name is taken for a glob."""
    if "://" in path and not is_file_uri(path):
        return path
    local = local_path(path).absolute()
    # A directory named `run[1]` is one directory and no pattern; a path that is not there may be meant as one.
    return _GLOB_LETTERS.sub(r"\\\g<0>", str(local)) if local.exists() else str(local)
