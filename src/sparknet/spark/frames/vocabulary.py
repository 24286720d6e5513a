"""What must be learned of a table's columns before they can be one input vector: their words and widths."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, DataType

from sparknet.config import Data
from sparknet.data.rows.table_encoding import Feature, TableEncoding
from sparknet.errors import DataError
from sparknet.spark.frames.column_kinds import FAULT, as_numbers, as_word, find_column, kind_of
from sparknet.spark.jobs.jobs import collect_reports

__all__ = ["learn", "look_through", "plain_encoding"]

_MOST_WORDS = 1_000
"""In one column of the input: each is a number in every row, and a column of names or dates is no feature."""
_MOST_LABEL_WORDS = 100_000
_Learned = tuple[str, ...] | int
"""A column's words, or how many numbers it gives."""


def learn(frame: DataFrame, data: Data) -> TableEncoding | None:
    """Find out what the columns named by `data.features` and `data.label` say: one job, if any.

    Args:
        frame: the training rows, or all rows.
        data: names the columns.

    Returns:
        The columns of the input with their words and widths, and the words of the label; None where the input is
        one column and the label a number.

    Raises:
        DataError: a column is missing, cannot be used, has too many words or none.
        WorkerError, ClusterError: the job failed.
    """
    features = _feature_types(frame, data)
    label, label_type = find_column(frame, data.label, key="label")
    wanted = _to_learn(frame, features)
    if kind_of(label_type) == "word":
        wanted.append(_Wanted(name=data.label, cells=as_word(label), most=_MOST_LABEL_WORDS))
    # A boolean has two classes, whether or not the training rows show both.
    fixed = ("false", "true") if isinstance(label_type, BooleanType) else ()
    if not features and not wanted and not fixed:
        return None
    found = _survey(frame, wanted)
    return TableEncoding(
        features=tuple(_feature(name, found.get(name, 1)) for name in features),
        label_words=_as_words(found.get(data.label, fixed)),
    )


def plain_encoding(frame: DataFrame, data: Data) -> TableEncoding:
    """What can be said without learning anything: `data.features` that are plain numbers.

    Raises:
        DataError: one of them holds words, vectors or arrays.
    """
    features = _feature_types(frame, data)
    for name, kind in features.items():
        if kind_of(kind) != "number":
            raise DataError(
                f"column {name} is {kind.simpleString()}, and how training encoded it is not known: test a model "
                "that was trained on these columns, or give columns of numbers"
            )
    return TableEncoding(features=tuple(Feature(name=name) for name in features))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wanted:
    """A column to be looked through: strings for their words, anything else for its width."""

    name: str
    cells: SparkColumn
    most: int = _MOST_WORDS


def _feature_types(frame: DataFrame, data: Data) -> dict[str, DataType]:
    """The columns of the input in their order."""
    names = _feature_names(frame, data)
    types = {name: find_column(frame, name, key="features")[1] for name in names}
    for name, kind in types.items():
        if kind_of(kind) not in ("number", "numbers", "word"):
            raise DataError(
                f"column {name} is {kind.simpleString()}; a feature must be a number, a boolean, a word, a vector "
                "or an array of numbers: convert it, or name other columns in data.features"
            )
    return types


def _feature_names(frame: DataFrame, data: Data) -> list[str]:
    """`data.features`; `*` stands for all but label and validation mark."""
    apart = {data.label, data.validation_column}
    if data.features == ("*",):
        names = [name for name in frame.columns if name not in apart and name != FAULT]
        if not names:
            raise DataError(f"data.features is ['*'] and the data have {data.label} alone: add columns")
        return names
    names = list(data.features)
    for name in names:
        if name == "*" or names.count(name) > 1:
            why = "'*' is every column and stands alone" if name == "*" else f"{name!r} is there twice"
            raise DataError(f"data.features is {names}; {why}: correct data.features")
        if name in apart:
            raise DataError(
                f"data.features has {name!r}, which is what the net is to find out or who is tested; a feature is "
                "something else: leave it out"
            )
    return names


def _to_learn(frame: DataFrame, features: dict[str, DataType]) -> list[_Wanted]:
    wanted: list[_Wanted] = []
    for name, kind in features.items():
        column, _ = find_column(frame, name, key="features")
        if kind_of(kind) == "word":
            wanted.append(_Wanted(name=name, cells=as_word(column)))
        elif kind_of(kind) == "numbers":
            # The length alone travels to Python, not the numbers.
            wanted.append(_Wanted(name=name, cells=F.array_size(as_numbers(column, kind))))
    return wanted


def _feature(name: str, learned: _Learned) -> Feature:
    if isinstance(learned, tuple):
        return Feature(name=name, words=learned, width=len(learned))
    return Feature(name=name, width=learned)


def _as_words(learned: _Learned) -> tuple[str, ...]:
    assert isinstance(learned, tuple), "a label is looked through for its words"
    return learned


def _survey(frame: DataFrame, wanted: list[_Wanted]) -> dict[str, _Learned]:
    """What each wanted column holds: its words, sorted, or the length of its arrays."""
    if not wanted:
        return {}
    # These columns alone: Parquet then reads no other from the disk.
    selected = frame.select(*(want.cells.alias(f"c{at}") for at, want in enumerate(wanted)))
    limits = tuple((want.name, want.most) for want in wanted)
    reports = collect_reports(selected, functools.partial(look_through, limits), doing="learning the table")
    if not reports:
        raise DataError("the data have no rows; training needs at least one: check data.path and its filters")
    parts = [report.values["found"] for report in reports]
    merged = ({value for part in parts for value in part[at]} for at in range(len(limits)))
    return {name: _merged(name, values, most) for (name, most), values in zip(limits, merged, strict=True)}


def _merged(name: str, values: set[Any], most: int) -> _Learned:
    if not values:
        raise DataError(f"column {name} is null in every row; it tells nothing: name other columns")
    # JSON keeps the two apart: lengths come back as integers and words as texts.
    numbers = isinstance(next(iter(values)), int)
    return _one_width(name, values) if numbers else _words(name, values, most)


def look_through(
    limits: tuple[tuple[str, int], ...], batches: Iterator[pa.RecordBatch]
) -> Iterator[dict[str, Any]]:
    """The task: the different values in each column of its rows, as one report; none where there are no rows.

    Args:
        limits: for each column its name and how many values it may have.
        batches: columns of strings, or of integers (lengths).

    Raises:
        DataError: a column has more values than that.
    """
    found: list[set[Any]] = [set() for _ in limits]
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        for at, (name, most) in enumerate(limits):
            # Arrow drops repetitions first: only different values become Python objects.
            found[at] |= {value for value in batch.column(at).unique().to_pylist() if value is not None}
            kind = batch.schema.types[at]
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                # After every batch: a column of names is refused before a million of them fill the memory.
                _words(name, found[at], most)
    if rows:
        # An empty partition says nothing, so that no rows at all can be told from rows of nulls.
        yield {"found": [sorted(values) for values in found]}


def _words(name: str, values: set[str], most: int) -> tuple[str, ...]:
    if len(values) > most:
        some = ", ".join(repr(value) for value in sorted(values)[:3])
        raise DataError(
            f"column {name} has more than {most} different words ({some}, …); each would be a class or a number of "
            "its own: name other columns, or convert it to numbers"
        )
    damaged = next((value for value in sorted(values) if "\ufffd" in value), None)
    if damaged is not None:
        raise DataError(
            f"column {name} has the word {damaged!r}, in which a letter was not UTF-8: words that differ in such "
            "letters alone would be one; convert the file to UTF-8"
        )
    return tuple(sorted(values))


def _one_width(name: str, widths: set[int]) -> int:
    if len(widths) > 1:
        few, many = min(widths), max(widths)
        raise DataError(
            f"column {name} has rows of {few} and of {many} values; a feature has as many in every row: correct "
            "the rows, or leave it out of data.features"
        )
    return widths.pop()
