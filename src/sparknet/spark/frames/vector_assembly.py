"""The columns of a table put together into one input vector by Spark, and words and values numbered."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparknet.data.rows.table_encoding import Category, Feature
from sparknet.errors import DataError
from sparknet.spark.frames.column_kinds import (
    Checked,
    Kind,
    as_number,
    as_numbers,
    as_word,
    checked,
    find_column,
    kind_of,
)

__all__ = ["Piece", "class_numbers", "table_input", "table_pieces"]

_INFINITY = float("inf")
_NEEDS_NUMBER = "; every row needs finite numbers: correct or remove such rows"


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Features next to each other that are read as one: a run of numbers, or one other column."""

    features: tuple[Feature, ...]
    kind: Kind
    """number, numbers or word."""
    cells: SparkColumn
    """array<float> of the numbers, unchecked, or the word."""


def table_pieces(frame: DataFrame, features: Sequence[Feature]) -> list[Piece]:
    """How the features are read from a frame.

    Raises:
        DataError: a column is missing, or of another kind than in training.
    """
    pieces: list[Piece] = []
    for kind, group in itertools.groupby((_read(frame, feature) for feature in features), lambda one: one.kind):
        run = list(group)
        if kind == "number":
            # Neighbours become one array, so that a table of thousands of columns has one check and not thousands.
            numbers = F.array(*(one.cells for one in run))
            run = [Piece(features=tuple(one.features[0] for one in run), kind=kind, cells=numbers)]
        pieces += run
    return pieces


def table_input(pieces: Sequence[Piece], cells: Sequence[SparkColumn], row: SparkColumn) -> Checked:
    """One array<float> of all features; of a cell that cannot be used the fault names column and row.

    Args:
        pieces: as `table_pieces` gives them.
        cells: their cells.
        row: names the row.
    """
    checks = {"number": _numbers_in_columns, "numbers": _numbers_in_one_column, "word": _one_hot}
    found = [checks[piece.kind](of, piece, row) for piece, of in zip(pieces, cells, strict=True)]
    # The first fault is told, in the order of the columns; `concat` of a null is null, so no half row is made.
    return Checked(cells=F.concat(*(one.cells for one in found)), fault=F.coalesce(*(one.fault for one in found)))


def class_numbers(cells: SparkColumn, category: Category, row: SparkColumn, *, name: str) -> Checked:
    """The class of each cell; a word or value that no training row has is a fault.

    Args:
        cells: words where the category has words, else numbers.
        category: what the classes stand for; neither words nor values: the cells are the classes themselves.
        row: names the row.
        name: of the column.
    """
    said = (f"column {name}: ", row, " says ", _quoted(cells.cast("string")))
    if not category.names:
        whole = cells == F.floor(cells)
        return checked(cells.cast("bigint"), whole, *said, "; a class is a whole number: correct such rows")
    words = bool(category.words)
    known = _constant(category.words) if words else F.array(*(F.lit(value) for value in category.values))
    # From 1; 0 for another one and null for null, both of which `place > 0` refuses. A fraction is nobody's value.
    place = F.array_position(known, cells if words else F.when(cells == F.floor(cells), cells.cast("bigint")))
    names = category.names
    some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    said = (*said, f"; the training rows say {some}: correct the label or remove such rows")
    return checked((place - 1).cast("bigint"), place > 0, *said)


def _read(frame: DataFrame, feature: Feature) -> Piece:
    """One feature by itself; the cells of a number are float."""
    column, kind = find_column(frame, feature.name, key="features")
    here = kind_of(kind)
    if feature.words and here in ("word", "number"):
        # as words also what looks like a number: a file whose every word does was read as numbers
        return Piece(features=(feature,), kind="word", cells=as_word(column))
    if not feature.words and here == "number" and feature.width == 1:
        return Piece(features=(feature,), kind=here, cells=as_number(column))
    if not feature.words and here == "numbers":
        return Piece(features=(feature,), kind=here, cells=as_numbers(column, kind))
    had = "words" if feature.words else "numbers" if feature.width == 1 else f"{feature.width} numbers"
    raise DataError(
        f"column {feature.name} is {kind.simpleString()}, and the training rows have {had} there; both must be of "
        "one kind: correct the rows"
    )


def _is_finite(value: SparkColumn) -> SparkColumn:
    # true of no null and, since Spark sorts NaN above all numbers, of no NaN
    return F.abs(value) < _INFINITY


def _numbers_in_columns(cells: SparkColumn, piece: Piece, row: SparkColumn) -> Checked:
    # As one array: thousands of columns with a check each take Spark minutes to plan.
    good = F.transform(cells, lambda value: F.coalesce(_is_finite(value), F.lit(False)))
    place = F.array_position(good, False).cast("int")
    # Evaluated for rows at fault alone, where `place` is at least 1: Spark refuses element 0.
    name = F.element_at(_constant([feature.name for feature in piece.features]), place)
    value = F.coalesce(F.element_at(cells, place).cast("string"), F.lit("null"))
    whole = F.forall(cells, _is_finite)
    return checked(cells, whole, "column ", name, ": ", row, " is ", value, _NEEDS_NUMBER)


def _numbers_in_one_column(cells: SparkColumn, piece: Piece, row: SparkColumn) -> Checked:
    (feature,) = piece.features
    count = F.array_size(cells)
    null = (f"column {feature.name}: ", row, " is null or holds a null, NaN or infinity")
    finite = checked(cells, F.forall(cells, _is_finite), *null, _NEEDS_NUMBER)
    has = (f"column {feature.name}: ", row, " has ", count.cast("string"), f" values and needs {feature.width}")
    # After the nulls: of a row that is null altogether the width is no news.
    complete = checked(finite.cells, count == feature.width, *has, ", as in training: correct such rows")
    return Checked(cells=complete.cells, fault=F.coalesce(finite.fault, complete.fault))


def _one_hot(cells: SparkColumn, piece: Piece, row: SparkColumn) -> Checked:
    (feature,) = piece.features
    place = F.array_position(_constant(feature.words), cells).cast("int")
    zero, one = F.lit(0.0).cast("float"), F.array(F.lit(1.0).cast("float"))
    # For an unknown word `place` is 0 and this makes nonsense; `checked` then gives null in its place.
    marks = F.concat(F.array_repeat(zero, place - 1), one, F.array_repeat(zero, feature.width - place))
    said = (f"column {feature.name}: ", row, " says ", _quoted(cells), "; a word of the training rows is needed: ")
    remedy = "correct it, remove such rows, or train on rows that have it (an unknown may say '?')"
    return checked(marks, place > 0, *said, remedy)


def _quoted(cells: SparkColumn) -> SparkColumn:
    return F.coalesce(F.concat(F.lit("'"), cells, F.lit("'")), F.lit("nothing (null)"))


def _constant(words: Sequence[str]) -> SparkColumn:
    """An array<string> of the words; as JSON it is one call to Spark however many they are."""
    return F.from_json(F.lit(json.dumps(words)), "array<string>")
