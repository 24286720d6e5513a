"""What must be learned of a table's columns before they can be one input vector: their words and widths."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, DataType

from sparknet.config import Data
from sparknet.data.rows.table_encoding import Category, Feature, TableEncoding
from sparknet.errors import DataError
from sparknet.spark.frames.column_kinds import FAULT, as_numbers, as_word, find_column, is_whole, kind_of
from sparknet.spark.jobs.jobs import collect_reports

__all__ = ["learn", "look_through", "plain_encoding"]

_MOST_WORDS = 1_000
"""In one column of the input: each is a number in every row, and a column of names or dates is no feature."""
_MOST_LABEL_WORDS = 100_000
_MOST_DOUBLES = 100
"""Different values of a column of doubles or floats that is still taken for classes when all of them are whole, as
StringIndexer makes them; a column of more is taken for measured numbers."""


def learn(frame: DataFrame, data: Data) -> TableEncoding | None:
    """Find out what the columns of `data.features` and those of classes say: one job, if any.

    Args:
        frame: the training rows, or all rows.
        data: names the columns.

    Returns:
        The columns of the input vector with their words and widths, and what classes stand for; None where nothing
        needs to be learned.

    Raises:
        DataError: a column is missing, cannot be used, has too many words or none.
        WorkerError, ClusterError: the job failed.
    """
    features = _feature_types(frame, data)
    labels = _class_columns(frame, data)
    wanted = [*_to_learn(frame, features), *(want for want in labels.values() if want is not None)]
    if not features and not labels:
        return None
    found = _survey(frame, wanted)
    categories: dict[str, Category] = {}
    for name, want in labels.items():
        # A boolean has two classes, whether or not the training rows show both.
        category = Category(words=("false", "true")) if want is None else _category(found[want.key], data, want)
        if category is not None:
            categories[name] = category
    return TableEncoding(
        features=tuple(_feature(name, found.get(_features_key(name), 1)) for name in features),
        categories=categories,
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
    """A column to be looked through: for its words, its different numbers, or the width of its arrays."""

    key: str
    """Tells it from others."""
    name: str
    """The column's, for messages."""
    cells: SparkColumn
    """Strings, doubles, or integers (lengths)."""
    most: int = _MOST_WORDS
    fractional: bool = False
    """They are numbers of a type that can have a fraction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Numbers:
    """The different numbers of a column."""

    whole: bool
    """None has a fraction, or is no number."""
    values: tuple[int, ...]
    """Rising, where they are whole and not too many."""
    least: float
    many: bool
    """More than are kept."""


_Learned = tuple[str, ...] | int | _Numbers
"""A column's words, how many numbers it gives, or its different numbers."""


def _features_key(name: str) -> str:
    return f"feature {name}"


def _class_columns(frame: DataFrame, data: Data) -> dict[str, _Wanted | None]:
    """The columns whose classes must be learned; None for booleans, of which all is known."""
    found: dict[str, _Wanted | None] = {}
    for name in data.column_names:
        rule = data.column(name)
        if rule.kind != "category" and (name not in data.target_names or rule.kind is not None):
            continue
        column, kind = find_column(frame, name, key="label")
        here = kind_of(kind)
        if isinstance(kind, BooleanType):
            found[name] = None
        elif here == "word":
            found[name] = _Wanted(key=f"class {name}", name=name, cells=as_word(column), most=_MOST_LABEL_WORDS)
        elif here == "number" and data.class_values != "stored" and rule.classes is None:
            found[name] = _wanted_numbers(name, column, declared=rule.kind is not None, whole=is_whole(kind))
        elif here == "number" and data.class_values != "stored" and not is_whole(kind):
            # They are classes, since their number is set: nothing is left to learn but that.
            found[name] = _wanted_numbers(name, column, declared=True, whole=False)
    return found


def _wanted_numbers(name: str, column: SparkColumn, *, declared: bool, whole: bool) -> _Wanted:
    return _Wanted(
        key=f"class {name}",
        name=name,
        cells=column.cast("double"),
        most=_MOST_LABEL_WORDS if declared or whole else _MOST_DOUBLES,
        fractional=not whole,
    )


def _category(learned: _Learned, data: Data, want: _Wanted) -> Category | None:
    """What the classes of a column stand for; None where its cells are measured numbers."""
    if isinstance(learned, tuple):
        return Category(words=learned)
    assert isinstance(learned, _Numbers), "a column of classes is looked through for words or numbers"
    name, rule = want.name, data.column(want.name)
    declared = rule.kind == "category" or rule.classes is not None
    if want.fractional and not declared and (learned.many or not learned.whole):
        return None
    if rule.classes is not None or (learned.least == 0 and not _are_names(learned.values)):
        # As they are: what is no class among them, the reading tells row by row.
        return Category()
    if learned.many or not learned.whole:
        why = f"more than {_MOST_LABEL_WORDS} different values" if learned.many else "numbers with a fraction"
        raise DataError(
            f"column {name} has {why}, from {learned.least:g} on; classes are whole numbers from 0, or few enough "
            f'to be numbered: set data.columns.{name}.kind to "number", or correct the rows'
        )
    return Category(values=learned.values)


def _are_names(values: tuple[int, ...]) -> bool:
    """Whether classes from 0 on leave out more numbers than they use: a net has an output for each of these."""
    return bool(values) and values[-1] >= 2 * len(values)


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
    apart = {*data.target_names, data.weight, data.validation_column, *data.input_names}
    if data.features == ("*",):
        names = [name for name in frame.columns if name not in apart and name != FAULT]
        if not names:
            others = ", ".join(data.target_names)
            raise DataError(f"data.features is ['*'] and the data have {others} alone: add columns")
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
            wanted.append(_Wanted(key=_features_key(name), name=name, cells=as_word(column)))
        elif kind_of(kind) == "numbers":
            # The length alone travels to Python, not the numbers.
            width = F.array_size(as_numbers(column, kind))
            wanted.append(_Wanted(key=_features_key(name), name=name, cells=width))
    return wanted


def _feature(name: str, learned: _Learned) -> Feature:
    if isinstance(learned, tuple):
        return Feature(name=name, words=learned, width=len(learned))
    assert isinstance(learned, int), "a feature is looked through for words or its width"
    return Feature(name=name, width=learned)


def _survey(frame: DataFrame, wanted: list[_Wanted]) -> dict[str, _Learned]:
    """What each wanted column holds, by its key."""
    if not wanted:
        return {}
    # These columns alone: Parquet then reads no other from the disk.
    selected = frame.select(*(want.cells.alias(f"c{at}") for at, want in enumerate(wanted)))
    limits = tuple((want.name, want.most) for want in wanted)
    reports = collect_reports(selected, functools.partial(look_through, limits), doing="learning the table")
    if not reports:
        raise DataError("the data have no rows; training needs at least one: check data.path and its filters")
    parts = [report.values["found"] for report in reports]
    return {want.key: _merged(want, [part[at] for part in parts]) for at, want in enumerate(wanted)}


def _merged(want: _Wanted, parts: list[Any]) -> _Learned:
    if isinstance(parts[0], dict):
        return _merged_numbers(want, [part for part in parts if part["least"] is not None])
    values = {value for part in parts for value in part}
    if not values:
        raise _only_nulls(want.name)
    # JSON keeps the two apart: lengths come back as integers and words as texts.
    numbers = isinstance(next(iter(values)), int)
    return _one_width(want.name, values) if numbers else _words(want.name, values, want.most)


def _merged_numbers(want: _Wanted, parts: list[dict[str, Any]]) -> _Numbers:
    if not parts:
        raise _only_nulls(want.name)
    values = {value for part in parts for value in part["values"]}
    many = any(part["many"] for part in parts) or len(values) > want.most
    whole = all(part["whole"] for part in parts)
    kept = tuple(sorted(int(value) for value in values)) if whole and not many else ()
    return _Numbers(whole=whole, values=kept, least=min(part["least"] for part in parts), many=many)


def _only_nulls(name: str) -> DataError:
    return DataError(f"column {name} is null in every row; it tells nothing: name other columns")


def look_through(
    limits: tuple[tuple[str, int], ...], batches: Iterator[pa.RecordBatch]
) -> Iterator[dict[str, Any]]:
    """The task: the different values in each column of its rows, as one report; none where there are no rows.

    Args:
        limits: for each column its name and how many values it may have.
        batches: columns of strings, of doubles, or of integers (lengths).

    Raises:
        DataError: a column of strings has more values than that.
    """
    found: list[set[Any]] = [set() for _ in limits]
    numbers = [_SeenNumbers(most=most) for _, most in limits]
    rows, kinds = 0, list[Any]()
    for batch in batches:
        rows += batch.num_rows
        kinds = batch.schema.types
        for at, (name, most) in enumerate(limits):
            if pa.types.is_floating(kinds[at]):
                numbers[at].add(batch.column(at))
                continue
            # Arrow drops repetitions first: only different values become Python objects.
            found[at] |= {value for value in batch.column(at).unique().to_pylist() if value is not None}
            if pa.types.is_string(kinds[at]) or pa.types.is_large_string(kinds[at]):
                # After every batch: a column of names is refused before a million of them fill the memory.
                _words(name, found[at], most)
    if rows:
        # An empty partition says nothing, so that no rows at all can be told from rows of nulls.
        yield {
            "found": [
                numbers[at].told() if pa.types.is_floating(kinds[at]) else sorted(values)
                for at, values in enumerate(found)
            ]
        }


class _SeenNumbers:
    """The different numbers of a column, as long as they are few."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._values: set[float] = set()
        self._many = False
        self._whole = True
        self._least: float | None = None

    def add(self, cells: Any) -> None:
        """Look through some cells; nulls say nothing."""
        seen = cells.drop_null().unique().to_numpy(zero_copy_only=False)
        if not len(seen):
            return
        # A NaN is no whole number, and as the least it would hide the others.
        finite = seen[np.isfinite(seen)]
        self._whole &= bool((finite == np.floor(finite)).all()) and len(finite) == len(seen)
        if len(finite):
            least = float(finite.min())
            self._least = least if self._least is None else min(self._least, least)
        if not self._many:
            self._values |= set(finite.tolist())
            self._many = len(self._values) > self._most
        # What has a fraction is no class: which values there are is then of no account.
        if self._many or not self._whole:
            self._values.clear()

    def told(self) -> dict[str, Any]:
        """As a report has it."""
        return {"values": sorted(self._values), "many": self._many, "whole": self._whole, "least": self._least}


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
