"""Input cells to arrays, with damaged rows left out and counted."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from sparknet.data.rows.arrow_values import Rows, image_values, input_column, input_values
from sparknet.data.rows.columns import Column, ImageForm
from sparknet.errors import DataError

__all__ = ["Damage", "InputPlan", "Inputs", "next_piece", "read_inputs"]

_MOST_EXAMPLES = 10
_NAMED_IN_ERRORS = 3
_PIECE_BYTES = 64 << 20  # of decoded images: a batch of Spark's is 10,000 rows, or 2 GB of 3x256x256
_PIECE_ROWS = 16  # before it is known what a row is


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """Rows that were left out."""

    rows: int = 0
    """How many."""
    examples: tuple[str, ...] = ()
    """What is wrong with the first ten of them."""

    @classmethod
    def of(cls, complaints: Iterable[str]) -> "Damage":
        """Count complaints, one for each damaged row."""
        every = tuple(complaints)
        return cls(rows=len(every), examples=every[:_MOST_EXAMPLES])

    def __add__(self, other: "Damage") -> "Damage":
        examples = (self.examples + other.examples)[:_MOST_EXAMPLES]
        return Damage(rows=self.rows + other.rows, examples=examples)

    def check(self, rows: int, *, share: float) -> None:
        """Hold the damaged rows against what the user allows.

        Args:
            rows: all rows, the damaged ones among them.
            share: `data.corrupt_share`.

        Raises:
            DataError: more than that share of the rows are damaged.
        """
        # a quotient is rounded as the share itself was; 0.29 * 100 is less than 29
        if self.rows and self.rows / rows > share:
            first = "; ".join(self.examples[:_NAMED_IN_ERRORS])
            raise DataError(
                f"{self.rows} of {rows} rows are damaged, a share of {self.rows / rows:.2g}; at most {share:g} may "
                f"be. The first: {first}: repair or remove them, or set data.corrupt_share"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class InputPlan:
    """How the input column is read; it travels to the workers."""

    name: str
    """The column's name."""
    shape: tuple[int, ...] = ()
    """Of one row; () takes the first row's."""
    form: ImageForm | None = None
    """How images become pixels; None: the source's bytes are pixels."""
    resize: tuple[int, ...] = ()
    """Height and width that images are brought to; (): all must be of one size."""
    threads: int = 1
    """Decode a task's images."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Inputs:
    """The inputs of some rows."""

    column: Column | None
    """What they are; None where no row so far was whole."""
    values: np.ndarray
    """Of the good rows, `column.dtype` [good rows, *shape]."""
    good: np.ndarray
    """Which rows are whole, bool [n]."""
    damage: Damage
    """The others."""
    batch: pa.RecordBatch
    """All n rows. In those with an `error`, whose other cells are null, stand the cells of a whole row: so the
    columns can be checked under their rows' own numbers."""


def next_piece(plan: InputPlan, batch: pa.RecordBatch, start: int, *, column: Column | None) -> pa.RecordBatch:
    """The rows from `start` on, at least one; if they are images, no more than take little memory when decoded.

    Args:
        plan: how they are read.
        batch: all rows.
        start: the first one wanted.
        column: what earlier rows have shown the input to be.
    """
    if column is None and plan.form is not None:
        return batch.slice(start, _PIECE_ROWS)
    if column is not None and column.image:
        return batch.slice(start, max(1, _PIECE_BYTES // column.row_bytes))
    return batch.slice(start)


def read_inputs(plan: InputPlan, batch: pa.RecordBatch, *, column: Column | None, rows: Rows) -> Inputs:
    """Check and decode the first column of some rows.

    Args:
        plan: how.
        batch: one row at least; a column `error` says what is wrong with damaged rows and is null in others, a
            column `name` what the source calls them.
        column: what earlier rows have shown the input to be.
        rows: what the batch holds.

    Raises:
        DataError: a row that is not as the plan says, though it is not damaged.
    """
    errors = _errors(batch)
    if "name" in batch.schema.names:
        rows = replace(rows, names=batch.column("name"))
    batch = _with_stand_ins(batch, errors)
    if len(errors) == batch.num_rows:
        return _nothing(batch, errors.values(), column=column)
    if column is None:
        column = input_column(
            batch.column(0), name=plan.name, shape=plan.shape, rows=rows, form=plan.form, resize=plan.resize
        )
    if column is None:
        # every image is damaged: any column serves to say how
        unknown = Column(name=plan.name, dtype="uint8", shape=(3, 1, 1), image=plan.form)
        found = image_values(batch.column(0), column=unknown, rows=rows, resizes=True, threads=plan.threads)
        complaints = dict(enumerate(found.complaints)) | errors
        return _nothing(batch, complaints.values(), column=None)
    good, complaints = np.ones(batch.num_rows, bool), dict[int, str]()
    if column.image:
        resizes = bool(plan.resize)
        found = image_values(batch.column(0), column=column, rows=rows, resizes=resizes, threads=plan.threads)
        values, good = found.pixels, found.good
        complaints = dict(zip(np.flatnonzero(~good).tolist(), found.complaints, strict=True))
    else:
        values = input_values(batch.column(0), column=column, rows=rows)
    complaints |= errors
    good[list(errors)] = False
    damage = Damage.of(complaints[row] for row in sorted(complaints))
    return Inputs(
        column=column, values=values if good.all() else values[good], good=good, damage=damage, batch=batch
    )


def _nothing(batch: pa.RecordBatch, complaints: Iterable[str], *, column: Column | None) -> Inputs:
    good = np.zeros(batch.num_rows, bool)
    return Inputs(column=column, values=np.zeros(0), good=good, damage=Damage.of(complaints), batch=batch)


def _errors(batch: pa.RecordBatch) -> dict[int, str]:
    """What the column `error` says, by row."""
    if "error" not in batch.schema.names:
        return {}
    column: Any = batch.column("error")
    bad = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)).tolist()
    return {row: column[row].as_py() for row in bad}


def _with_stand_ins(batch: pa.RecordBatch, errors: dict[int, str]) -> pa.RecordBatch:
    if not errors or len(errors) == batch.num_rows:
        return batch
    source = np.arange(batch.num_rows)
    bad = list(errors)
    source[bad] = np.delete(source, bad)[0]
    return batch.take(pa.array(source))
