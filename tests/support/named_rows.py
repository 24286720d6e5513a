"""Rows of columns with names, and tables of them in memory."""

from collections.abc import Sequence

import numpy as np

from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema


def number(name: str, *shape: int) -> Column:
    """A column of numbers."""
    return Column(name=name, dtype="float32", shape=shape)


def classes(name: str, count: int | None, *shape: int) -> Column:
    """A column of classes, or with None of whole numbers."""
    return Column(name=name, dtype="int64", shape=shape, classes=count)


def rows_of(inputs: Sequence[Column], targets: Sequence[Column], weight: str = "") -> RowSchema:
    """What a row is."""
    return RowSchema(inputs=tuple(inputs), targets=tuple(targets), weight=weight)


class Rows:
    """A table of columns in memory."""

    def __init__(self, **columns: np.ndarray) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def slice(self, start: int, stop: int, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Rows `start` to `stop` (exclusive)."""
        return {name: values[start:stop] for name, values in self.columns.items()}
