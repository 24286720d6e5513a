"""Rows as a task gets them, piece by piece: whole ones checked and decoded, damaged ones counted and left out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sparknet.data.rows.arrow_values import Rows, encoded_cells, label_values, validation_marks
from sparknet.data.rows.columns import Column
from sparknet.data.rows.damage import Damage
from sparknet.data.rows.inputs import InputPlan, next_piece, read_inputs
from sparknet.errors import DataError

__all__ = ["ReadPlan", "RowReader", "WholeRows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadPlan:
    """How rows are read; it travels to the workers."""

    input: InputPlan
    """How the input column is read."""
    label: str
    """Name of the label column, for messages."""
    classes: int | None = None
    """Labels must be below this; None: no bound but the general one."""
    validation: str = ""
    """What names the column of marks, for messages; empty: the rows are not marked."""
    keep: Literal["pixels", "encoded"] = "pixels"
    """What is kept of images: pixels, or the files as they are."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class WholeRows:
    """The whole ones among some consecutive rows."""

    first: int
    """Number of the first of those rows within the partition, damaged ones counted too."""
    good: np.ndarray
    """Which of those rows are whole, bool; the others are damaged."""
    names: Any
    """Arrow array of what the source calls the whole rows; None where it has no names."""
    labels: np.ndarray
    """int64 [n]."""
    marks: np.ndarray | None
    """Which are validation rows, bool [n]; None where they are not marked."""
    column: Column
    """What the input is; with `image` set it is kept as files."""
    values: np.ndarray
    """Pixels or numbers, `column.dtype` [n, *shape]; of files what they decode to, unless they are only checked."""
    files: Any
    """Arrow array of the encoded images, where they are kept; else None."""

    @property
    def numbers(self) -> np.ndarray:
        """Of the whole rows within the partition, int64 [n]."""
        return self.first + np.flatnonzero(self.good)


class RowReader:
    """Reads a partition's rows.

    Attributes:
        damage: rows that were left out so far.
    """

    def __init__(self, plan: ReadPlan, partition: int) -> None:
        self.damage = Damage()
        self._plan = plan
        self._rows = Rows(partition=partition, first=0)
        self._column: Column | None = None

    @property
    def rows(self) -> int:
        """Rows so far, damaged ones too."""
        return self._rows.first

    def read(self, batches: Iterable[pa.RecordBatch]) -> Iterator[WholeRows]:
        """The whole rows, in pieces that take little memory when decoded.

        Args:
            batches: the columns input (see `input_column`), label (int64), if the plan says so validation
                (boolean), in this order, and maybe `name` (string), `error` (string): what is wrong with a
                damaged row, null for others, and `fault` (string): what is wrong with a row that must not be left
                out, null for others.

        Raises:
            DataError: a row that is neither damaged nor as the plan says.
        """
        for batch in batches:
            at = 0
            while at < batch.num_rows:
                # Piece by piece, since Spark's batches are cut by rows: 10,000 images are 2 GB when decoded.
                piece = next_piece(self._plan.input, batch, at, column=self._column)
                found = self._read(piece)
                # Damaged rows count: held-out rows and names must not move when one is repaired.
                self._rows = replace(self._rows, first=self._rows.first + piece.num_rows)
                at += piece.num_rows
                if found is not None:
                    yield found

    def _read(self, batch: pa.RecordBatch) -> WholeRows | None:
        plan, rows = self._plan, self._rows
        # Before anything is counted or decoded: a fault ends the task, whatever else the rows hold.
        _refuse_faults(batch)
        found = read_inputs(plan.input, batch, column=self._column, rows=rows)
        # What the first whole row was, all others must be.
        self._column = found.column
        self.damage += found.damage
        column, good = found.column, found.good
        if column is None or not good.any():
            return None
        # Of all rows, with stand-ins for damaged ones, so that an error names the row by its number in the source.
        labels = label_values(found.batch.column(1), name=plan.label, classes=plan.classes, rows=rows)
        marks = None
        if plan.validation:
            marks = validation_marks(found.batch.column(2), name=plan.validation, rows=rows)[good]
        files = None
        if column.image and plan.keep == "encoded":
            # not of `found.batch`, where other cells stand in for those of damaged rows
            files = encoded_cells(batch.column(0), name=plan.input.name)
        chosen = pa.array(good)
        names: Any = found.batch.column("name") if "name" in batch.schema.names else None
        return WholeRows(
            first=rows.first,
            good=good,
            names=None if names is None else names.filter(chosen),
            labels=labels if good.all() else labels[good],
            marks=marks,
            column=column if files is not None else replace(column, image=None),
            values=found.values,
            files=files if files is None or good.all() else files.filter(chosen),
        )


def _refuse_faults(batch: pa.RecordBatch) -> None:
    if "fault" in batch.schema.names:
        faults: Any = batch.column("fault").drop_null()
        if len(faults):
            raise DataError(faults[0].as_py())
