"""The columns of a DataFrame that training needs, checked and brought into one form by Spark."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, DataType, IntegralType

from sparknet.config import Data
from sparknet.data.rows.table_encoding import TableEncoding
from sparknet.data.sources.registry import FORMATS
from sparknet.data.storage.fingerprint import describe_files
from sparknet.errors import DataError
from sparknet.spark.frames.column_kinds import (
    FAULT,
    as_nested_numbers,
    as_number,
    as_word,
    find_column,
    kind_of,
    row_name,
)
from sparknet.spark.frames.vector_assembly import label_numbers, table_input, table_pieces
from sparknet.spark.frames.vocabulary import plain_encoding

__all__ = ["describe_file_source", "describe_frame", "select_columns"]


def select_columns(
    frame: DataFrame, data: Data, *, validation: DataFrame | None, table: TableEncoding | None = None
) -> DataFrame:
    """Select what the shards need: `input`, `label`, `validation` where marked, `error` and `name` where known.

    Args:
        frame: the training rows, or all rows.
        data: names the columns.
        validation: the validation rows, when they come from a second source.
        table: what `learn` found out about `data.features` and the label.

    Returns:
        input binary, Spark's struct of an image, array<float>, nested as it was, or float; label bigint; validation
        boolean, unless a fraction is drawn; error string and name string, for sources that read on after a damaged
        record: error is null for whole rows; fault string, where rows were checked: what is wrong with a row that
        is not damaged and yet cannot be used, which is for the task to raise.

    Raises:
        DataError: a column is missing or of a type that cannot be used.
    """
    # A second source makes the marks: a column of that name would contradict it.
    first = _select(frame, data, table, mark=data.validation_column if validation is None else "")
    if validation is None:
        return first
    second = _select(validation, data, table, mark="")
    # Spark's union would widen some pairs of types silently and refuse others in words of its own.
    here, there = first.schema["input"].dataType, second.schema["input"].dataType
    if kind_of(here) != kind_of(there):
        raise DataError(
            f"column {data.image} is {_text(here)} in training and {_text(there)} in validation rows; "
            "both must be of one type: convert one of the sources"
        )
    names = ["input", "label", "validation", *first.columns[2:]]
    marked = [rows.withColumn("validation", F.lit(mark)) for rows, mark in ((first, False), (second, True))]
    # By name, and in the order of `RowReader.read`, which takes the first three by place.
    return marked[0].unionByName(marked[1]).select(*names)


def describe_frame(frame: DataFrame) -> dict[str, Any]:
    """What identifies any DataFrame within its Spark application, as JSON values."""
    local, remote = _input_files(frame)
    return {
        "plan": frame.semanticHash(),
        "schema": frame.schema.json(),
        # Spark's hash of a plan over rows in memory does not tell those rows apart across applications.
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
    # The operating system tells of local files at once; a remote store's credentials may be Spark's alone.
    if not remote:
        return describe_files(local)
    facts = [f"_metadata.{name}" for name in ("file_path", "file_size", "file_modification_time")]
    return sorted([str(value) for value in row] for row in frame.select(*facts).distinct().collect())


def _input_files(frame: DataFrame) -> tuple[list[Path], list[str]]:
    # Sorted: Spark promises no order, and the description is compared.
    names = sorted(frame.inputFiles())
    local = [Path(unquote(urlsplit(name).path)) for name in names if name.startswith("file:")]
    return local, [name for name in names if not name.startswith("file:")]


def _select(frame: DataFrame, data: Data, table: TableEncoding | None, *, mark: str) -> DataFrame:
    # Without a table nothing was learned: columns of numbers need none, and others are refused.
    encoding = table or plain_encoding(frame, data)
    label = _label(frame, data.label, encoding)
    rest = [_marks(frame, mark)] if mark else []
    # A table of the user's may have a column `error` too, which means something else.
    if data.source in FORMATS and FORMATS[data.source].names_rows:
        rest += [F.col(own) for own in ("error", "name") if own in frame.columns]
    faults = [F.col(f"`{FAULT}`")] if FAULT in frame.columns else []
    if encoding == TableEncoding():
        return frame.select(_input(frame, data.image), label, *rest, *(fault.alias("fault") for fault in faults))
    # Cells first, under names: value, test and message of a check then refer to a column, not each to the whole
    # expression.
    pieces = table_pieces(frame, encoding.features)
    inputs = [piece.cells.alias(f"piece{at}") for at, piece in enumerate(pieces)] or [_input(frame, data.image)]
    # A column of its own: within an expression that is not evaluated for every row it would not count the rows.
    staged = frame.select(*inputs, label, *rest, *faults, F.monotonically_increasing_id().alias("row"))
    row = row_name(F.col("row"))
    whole, number = F.col("input"), F.col("label")
    if pieces:
        made = table_input(pieces, [F.col(f"piece{at}") for at in range(len(pieces))], row)
        whole, faults = made.cells, [*faults, made.fault]
    if encoding.label_words:
        numbered = label_numbers(F.col("label"), encoding.label_words, row, name=data.label)
        number, faults = numbered.cells, [*faults, numbered.fault]
    others = [name for name in ("validation", "error", "name") if name in staged.columns]
    fault = [F.coalesce(*faults).alias("fault")] if faults else []
    return staged.select(whole.alias("input"), number.alias("label"), *others, *fault)


def _input(frame: DataFrame, name: str) -> SparkColumn:
    column, kind = find_column(frame, name, key="image")
    match kind_of(kind):
        case "bytes" | "image":
            return column.alias("input")
        case "numbers":
            return as_nested_numbers(column, kind).alias("input")
        case "number":
            return as_number(column).alias("input")
        case _:
            raise DataError(
                f"column {name} is {_text(kind)}; the input must be binary, an array or vector of numbers, a "
                "number, or an image as Spark reads it: convert it, set data.image, or put several columns, words "
                "too, together by data.features"
            )


def _label(frame: DataFrame, name: str, encoding: TableEncoding) -> SparkColumn:
    column, kind = find_column(frame, name, key="label")
    whole = isinstance(kind, IntegralType | BooleanType)
    if encoding.label_words and (whole or kind_of(kind) == "word"):
        return as_word(column).alias("label")
    if not whole:
        raise DataError(
            f"column {name} is {_text(kind)}; the label must be an integer, or a word or boolean in training as in "
            "tests: convert it or set data.label"
        )
    return column.cast("bigint").alias("label")


def _marks(frame: DataFrame, name: str) -> SparkColumn:
    column, kind = find_column(frame, name, key="validation_column")
    if not isinstance(kind, BooleanType):
        raise DataError(
            f"column {name} is {_text(kind)}; it must be boolean, true for validation rows: convert it or set "
            "data.validation_column"
        )
    return column.alias("validation")


def _text(kind: DataType) -> str:
    return kind.simpleString()
