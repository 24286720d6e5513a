"""The columns of a DataFrame that training needs, checked and brought into one form by Spark."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BooleanType, DataType

from sparknet.config import Data
from sparknet.data.rows.table_encoding import TableEncoding
from sparknet.data.sources.registry import FORMATS
from sparknet.data.storage.fingerprint import describe_files
from sparknet.errors import DataError
from sparknet.spark.frames.column_kinds import (
    FAULT,
    Checked,
    as_nested_numbers,
    as_number,
    as_whole_numbers,
    as_word,
    find_column,
    is_whole,
    kind_of,
    row_name,
)
from sparknet.spark.frames.vector_assembly import class_numbers, table_input, table_pieces
from sparknet.spark.frames.vocabulary import plain_encoding

__all__ = ["MadeCells", "cells_beside", "describe_file_source", "describe_frame", "select_columns"]

_STAGED, _ROW = "sparknet: cells ", "sparknet: number of the row"
"""Columns of ours beside a frame's own, with names that no table has."""


def select_columns(
    frame: DataFrame, data: Data, *, validation: DataFrame | None, table: TableEncoding | None = None
) -> DataFrame:
    """Select what the shards need: each column of `data.column_names`, marks, and what is known of damaged rows.

    Args:
        frame: the training rows, or all rows.
        data: names the columns.
        validation: the validation rows, when they come from a second source.
        table: what `learn` found out about `data.features` and columns of classes.

    Returns:
        c0, c1, …, as `arrow_values.column_of` takes them: binary, Spark's struct of an image, arrays of float or
        bigint, nested as they were, float, or, of classes, bigint; validation boolean, unless a fraction is drawn;
        error string and name string, for sources that read on after a damaged record: error is null for whole rows;
        fault string, where rows were checked: what is wrong with a row that is not damaged and yet cannot be used,
        which is for the task to raise.

    Raises:
        DataError: a column is missing or of a type that cannot be used.
    """
    # A second source makes the marks: a column of that name would contradict it.
    first = _select(frame, data, table, mark=data.validation_column if validation is None else "")
    if validation is None:
        return first
    second = _select(validation, data, table, mark="")
    names = [f"c{at}" for at in range(len(data.column_names))]
    # Spark's union would widen some pairs of types silently and refuse others in words of its own.
    for name, cells in zip(data.column_names, names, strict=True):
        here, there = first.schema[cells].dataType, second.schema[cells].dataType
        if kind_of(here) != kind_of(there):
            raise DataError(
                f"column {name} is {_text(here)} in training and {_text(there)} in validation rows; "
                "both must be of one type: convert one of the sources"
            )
    order = [*names, "validation", *first.columns[len(names) :]]
    marked = [rows.withColumn("validation", F.lit(mark)) for rows, mark in ((first, False), (second, True))]
    # By name, and in the order of `RowReader.read`, which takes the first ones by place.
    return marked[0].unionByName(marked[1]).select(*order)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prepared:
    """One column on its way: first its cells under names of their own, then what becomes of them.

    In two steps: value, test and message of a check then refer to a column, not each to the whole expression.
    """

    cells: tuple[SparkColumn, ...]
    finish: Callable[[Sequence[SparkColumn], SparkColumn], Checked] | None = None
    """From the named cells and the name of the row; None: the only cell is what is wanted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeCells:
    """Columns in the form that tasks take, as expressions over a frame."""

    staged: DataFrame
    """The frame, or one of its columns and a few beside."""
    cells: tuple[SparkColumn, ...]
    """As `select_columns` gives them, in the order that was asked for."""
    fault: tuple[SparkColumn, ...]
    """What is wrong with a row, if that is looked at: one column or none."""
    extra: tuple[str, ...] = ()
    """Columns of `staged` that the frame did not have."""


def _select(frame: DataFrame, data: Data, table: TableEncoding | None, *, mark: str) -> DataFrame:
    rest = [_marks(frame, mark)] if mark else []
    # A table of the user's may have a column `error` too, which means something else.
    if data.source in FORMATS and FORMATS[data.source].names_rows:
        rest += [F.col(own) for own in ("error", "name") if own in frame.columns]
    names = {name: name for name in data.column_names}
    made = _made(frame, data, names, table, beside=[*rest, *_told(frame)])
    wanted = [cells.alias(f"c{at}") for at, cells in enumerate(made.cells)]
    if made.staged is not frame:
        rest = [F.col(name) for name in ("validation", "error", "name") if name in made.staged.columns]
    return made.staged.select(*wanted, *rest, *(fault.alias("fault") for fault in made.fault))


def cells_beside(frame: DataFrame, data: Data, names: Mapping[str, str], table: TableEncoding | None) -> MadeCells:
    """The cells of some columns for a net, made beside all that a frame has, which stays as it is.

    Args:
        frame: the rows; others than the columns in `names` are not looked at.
        data: says what the columns are.
        names: which of `data.column_names`, and what each is called in the frame.
        table: what was learned in training.

    Raises:
        DataError: a column is missing or of a type that cannot be used.
    """
    return _made(frame, data, names, table, beside=[F.col("*")])


def _made(
    frame: DataFrame,
    data: Data,
    names: Mapping[str, str],
    table: TableEncoding | None,
    *,
    beside: Sequence[SparkColumn],
) -> MadeCells:
    """Cells of columns, with those `beside` in the staged frame if there must be one."""
    # Without a table nothing was learned: columns of numbers need none, and others are refused.
    encoding = table or plain_encoding(frame, data)
    columns = [_prepared(frame, data, name, encoding, called=called) for name, called in names.items()]
    told = _told(frame)
    if all(column.finish is None for column in columns):
        return MadeCells(staged=frame, cells=tuple(column.cells[0] for column in columns), fault=tuple(told))
    named = [[f"{_STAGED}{at}.{piece}" for piece in range(len(column.cells))] for at, column in enumerate(columns)]
    cells = [
        cell.alias(name)
        for column, own in zip(columns, named, strict=True)
        for cell, name in zip(column.cells, own, strict=True)
    ]
    # A column of its own: within an expression that is not evaluated for every row it would not count the rows.
    staged = frame.select(*beside, *cells, F.monotonically_increasing_id().alias(_ROW))
    row = row_name(F.col(f"`{_ROW}`"))
    wanted: list[SparkColumn] = []
    for column, pieces in zip(columns, named, strict=True):
        own = [F.col(f"`{piece}`") for piece in pieces]
        if column.finish is None:
            wanted.append(own[0])
        else:
            made = column.finish(own, row)
            wanted.append(made.cells)
            told.append(made.fault)
    extra = (*(name for names in named for name in names), _ROW)
    return MadeCells(staged=staged, cells=tuple(wanted), fault=(F.coalesce(*told),), extra=extra)


def _told(frame: DataFrame) -> list[SparkColumn]:
    """What whoever read the rows has to say of them."""
    return [F.col(f"`{FAULT}`")] if FAULT in frame.columns else []


def _prepared(frame: DataFrame, data: Data, name: str, encoding: TableEncoding, *, called: str) -> _Prepared:
    if name == "features" and encoding.features:
        pieces = table_pieces(frame, encoding.features)
        return _Prepared(
            cells=tuple(piece.cells for piece in pieces), finish=lambda cells, row: table_input(pieces, cells, row)
        )
    if name == data.weight:
        column, kind = find_column(frame, called, key="weight")
        if kind_of(kind) != "number":
            raise DataError(
                f"column {name} is {_text(kind)}; a weight must be a number: convert it or set data.weight"
            )
        return _Prepared(cells=(as_number(column),))
    is_target = name in data.target_names
    column, kind = find_column(frame, called, key="label" if is_target else "image")
    rule = data.column(name)
    if rule.kind == "category" or (is_target and rule.kind is None and kind_of(kind) in ("number", "word")):
        return _class_cells(name, column, kind, encoding=encoding, data=data)
    return _Prepared(cells=(_plain_cells(name, column, kind, data=data),))


def _class_cells(
    name: str, column: SparkColumn, kind: DataType, *, encoding: TableEncoding, data: Data
) -> _Prepared:
    category, here = encoding.categories.get(name), kind_of(kind)
    if category is not None and (category.names or not is_whole(kind)):
        if category.words and here in ("number", "word"):
            cells = as_word(column)
        elif not category.words and here == "number":
            cells = column.cast("double") if not is_whole(kind) else column.cast("bigint")
        else:
            raise DataError(
                f"column {name} is {_text(kind)}, and the training rows have {', '.join(category.names[:5])} "
                "there; both must be of one kind: correct the rows"
            )
        return _Prepared(cells=(cells,), finish=lambda own, row: class_numbers(own[0], category, row, name=name))
    if is_whole(kind):
        return _Prepared(cells=(column.cast("bigint"),))
    # A number that was not found to be a class.
    if here == "number" and data.column(name).kind is None and data.column(name).classes is None:
        return _Prepared(cells=(as_number(column),))
    raise DataError(
        f"column {name} is {_text(kind)}; the label must be an integer, or a word or boolean in training as in "
        "tests: convert it or set data.label"
    )


def _plain_cells(name: str, column: SparkColumn, kind: DataType, *, data: Data) -> SparkColumn:
    rule, here = data.column(name), kind_of(kind)
    if rule.kind == "ids" or (rule.kind == "array" and rule.dtype in ("uint8", "int64") and here == "numbers"):
        if here != "numbers" or not isinstance(kind, ArrayType) or not is_whole(kind):
            raise DataError(
                f"column {name} is {_text(kind)}; {rule.kind} of {rule.dtype or 'int64'} must be an array of whole "
                f"numbers: convert it, or set data.columns.{name}.kind"
            )
        return as_whole_numbers(column, kind)
    allowed = {None: ("bytes", "image", "numbers", "number"), "image": ("bytes", "image"), "number": ("number",)}
    if here not in allowed.get(rule.kind, ("bytes", "numbers")):
        if rule.kind is not None:
            raise DataError(
                f"column {name} is {_text(kind)}, and data.columns.{name}.kind is {rule.kind!r}: convert the "
                "column, or correct the kind"
            )
        raise DataError(
            f"column {name} is {_text(kind)}; the input must be binary, an array or vector of numbers, a "
            "number, or an image as Spark reads it: convert it, set data.image, or put several columns, words "
            "too, together by data.features"
        )
    if here == "numbers":
        return as_nested_numbers(column, kind)
    return as_number(column) if here == "number" else column


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
