"""Rows for a net of which some may be of no use: the first of those is told, or all are found and passed over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import Column, check_alike
from sparknet.data.rows.reading import ReadPlan, RowReader, WholeRows
from sparknet.errors import DataError

__all__ = ["RowSieve", "Sifted"]

_SAID = ("fault", "error")
"""Columns of what is wrong with a row, null where nothing is."""

_Piece = tuple[np.ndarray, WholeRows]
"""Whole rows, and their numbers in the batch."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Sifted:
    """Rows, read."""

    good: np.ndarray
    """Which can be used, bool [n]."""
    values: Mapping[str, np.ndarray]
    """By column of those that can, in their order, `dtype` [good, *shape]; {} where none can."""


class RowSieve:
    """Reads the rows of one partition as a trained net takes them.

    Args:
        plan: how they are read.
        trained: what each of the plan's columns was in training.
        partition: its number, for messages.
        refuse: a row that cannot be used is an error.
        any_type: the net takes whatever type can be read.
    """

    def __init__(
        self,
        plan: ReadPlan,
        trained: Sequence[Column],
        *,
        partition: int,
        refuse: bool,
        any_type: bool = False,
    ) -> None:
        self._plan, self._trained = plan, tuple(trained)
        self._reader = RowReader(plan, partition)
        self._refuse, self._any_type = refuse, any_type

    def read(self, batch: pa.RecordBatch) -> Sifted:
        """Read some rows, which follow on those before.

        Args:
            batch: the plan's columns in their order, and perhaps `fault`, `error` and `name`, as
                `RowReader.read` takes them.

        Raises:
            DataError: all rows are of another kind than in training; or one cannot be used, where that is refused.
        """
        if self._refuse:
            pieces = self._whole(batch, np.arange(batch.num_rows))
            if self._reader.damage.rows:
                raise DataError(
                    f"{self._reader.damage.examples[0]}; a row that cannot be used is an error: correct or remove "
                    "such rows, or set handle_invalid to 'skip' or 'keep'"
                )
        else:
            # What is said of rows has been heard, and would end the reading.
            bare = batch.select([name for name in batch.schema.names if name not in (*_SAID, "name")])
            pieces = self._sift(bare, np.flatnonzero(self._not_told(batch)))
        good = np.zeros(batch.num_rows, bool)
        for rows, _ in pieces:
            good[rows] = True
        return Sifted(good=good, values=self._joined([piece for _, piece in pieces]))

    def _not_told(self, batch: pa.RecordBatch) -> np.ndarray:
        """Which rows are there and have nothing said against them, bool [n]."""
        result = np.ones(batch.num_rows, bool)
        for at in range(len(self._plan.columns)):
            result &= _mask(batch.column(at).is_valid())
        for name in _SAID:
            if name in batch.schema.names:
                result &= _mask(batch.column(name).is_null())
        return result

    def _sift(self, batch: pa.RecordBatch, rows: np.ndarray) -> list[_Piece]:
        """What can be used among the rows of these numbers."""
        if not len(rows):
            return []
        try:
            return self._whole(batch if len(rows) == batch.num_rows else batch.take(pa.array(rows)), rows)
        except DataError:
            if len(rows) == 1:
                return []
        # Whatever may be wrong with a row is found where it is read, which then ends. So a bad row among others is
        # found by halves: of n rows about 2 n are read for it.
        half = len(rows) // 2
        return self._sift(batch, rows[:half]) + self._sift(batch, rows[half:])

    def _whole(self, batch: pa.RecordBatch, rows: np.ndarray) -> list[_Piece]:
        """The whole ones of a batch, whose rows have these numbers."""
        first = self._reader.rows
        return [(rows[piece.numbers - first], piece) for piece in self._reader.read([batch])]

    def _joined(self, pieces: Sequence[WholeRows]) -> dict[str, np.ndarray]:
        if not pieces:
            return {}
        # Behind the reading: a column of another type is no fault of one row.
        for plan, found, trained in zip(self._plan.columns, pieces[0].columns, self._trained, strict=True):
            check_alike(found, trained, any_type=self._any_type, cut=bool(plan.cut))
        if len(pieces) == 1:
            return dict(pieces[0].values)
        return {name: np.concatenate([piece.values[name] for piece in pieces]) for name in pieces[0].values}


def _mask(values: Any) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False)
