"""The columns of a DataFrame that training needs, checked and brought into one form by Spark."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BinaryType, BooleanType, DataType, FloatType, IntegralType, NumericType

from sparknet.config import Data
from sparknet.data.fingerprint import describe_files
from sparknet.errors import DataError

__all__ = ["describe_file_source", "describe_frame", "select_columns"]


def select_columns(frame: DataFrame, data: Data, *, validation: DataFrame | None) -> DataFrame:
    """Select what the shards need: `input`, `label` and, where rows are marked, `validation`.

    Args:
        frame: the training rows, or all rows.
        data: names the columns.
        validation: the validation rows, when they come from a second source.

    Returns:
        input binary, array<float> or float; label bigint; validation boolean, unless a fraction is drawn.

    Raises:
        DataError: a column is missing or of a type that cannot be used.
    """
    if validation is None:
        marks = [_marks(frame, data.validation_column)] if data.validation_column else []
        return frame.select(_input(frame, data.image), _label(frame, data.label), *marks)
    first = frame.select(_input(frame, data.image), _label(frame, data.label))
    second = validation.select(_input(validation, data.image), _label(validation, data.label))
    here, there = first.schema["input"].dataType, second.schema["input"].dataType
    if type(here) is not type(there):
        raise DataError(
            f"column {data.image} is {_text(here)} in training and {_text(there)} in validation rows; "
            "both must be of one type: convert one of the sources"
        )
    marked = second.withColumn("validation", F.lit(True))
    return first.withColumn("validation", F.lit(False)).unionByName(marked)


def describe_frame(frame: DataFrame) -> dict[str, Any]:
    """What identifies any DataFrame within its Spark application, as JSON values.

    Spark's hash of a plan over rows in memory does not depend on those rows across applications, so the
    application is part of the description.
    """
    local, remote = _input_files(frame)
    return {
        "plan": frame.semanticHash(),
        "schema": frame.schema.json(),
        "application": frame.sparkSession.conf.get("spark.app.id", ""),
        "files": describe_files(local),
        "remote_files": remote,
    }


def describe_file_source(frame: DataFrame) -> list[Any]:
    """Name, size and time of change of the files that a DataFrame straight from files reads.

    Local files are looked at here; for others Spark is asked, which takes a job over the files' footers.

    Raises:
        DataError: a local file is gone.
    """
    local, remote = _input_files(frame)
    if not remote:
        return describe_files(local)
    facts = [f"_metadata.{name}" for name in ("file_path", "file_size", "file_modification_time")]
    return sorted([str(value) for value in row] for row in frame.select(*facts).distinct().collect())


def _input_files(frame: DataFrame) -> tuple[list[Path], list[str]]:
    names = sorted(frame.inputFiles())
    local = [Path(unquote(urlsplit(name).path)) for name in names if name.startswith("file:")]
    return local, [name for name in names if not name.startswith("file:")]


def _column(frame: DataFrame, name: str, *, key: str) -> tuple[SparkColumn, DataType]:
    if name not in frame.columns:
        raise DataError(f"column {name} is not in the data, which has {', '.join(frame.columns)}: set data.{key}")
    quoted = name.replace("`", "``")
    return frame[f"`{quoted}`"], frame.schema[name].dataType


def _input(frame: DataFrame, name: str) -> SparkColumn:
    column, kind = _column(frame, name, key="image")
    if isinstance(kind, BinaryType):
        return column.alias("input")
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, NumericType):
        return column.cast(ArrayType(FloatType())).alias("input")
    if isinstance(kind, NumericType):
        return column.cast(FloatType()).alias("input")
    raise DataError(
        f"column {name} is {_text(kind)}; the input must be binary, an array of numbers or a number: "
        "convert it or set data.image"
    )


def _label(frame: DataFrame, name: str) -> SparkColumn:
    column, kind = _column(frame, name, key="label")
    if not isinstance(kind, IntegralType):
        raise DataError(
            f"column {name} is {_text(kind)}; the label must be an integer: convert it or set data.label"
        )
    return column.cast("bigint").alias("label")


def _marks(frame: DataFrame, name: str) -> SparkColumn:
    column, kind = _column(frame, name, key="validation_column")
    if not isinstance(kind, BooleanType):
        raise DataError(
            f"column {name} is {_text(kind)}; it must be boolean, true for validation rows: convert it or set "
            "data.validation_column"
        )
    return column.alias("validation")


def _text(kind: DataType) -> str:
    return kind.simpleString()
