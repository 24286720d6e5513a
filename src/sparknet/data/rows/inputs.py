"""Input cells to arrays, with damaged rows left out and counted."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from sparknet.data.rows.arrow_values import Rows, check_images, image_values, input_column, input_values
from sparknet.data.rows.columns import Column, ImageForm
from sparknet.data.rows.damage import Damage

__all__ = ["InputPlan", "Inputs", "next_piece", "read_inputs"]

_PIECE_BYTES = 64 << 20  # of decoded images: a batch of Spark's is 10,000 rows, or 2 GB of 3x256x256
_PIECE_ROWS = 16  # before it is known what a row is


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
    keep_files: bool = False
    """Images stay files of whatever size: they are decoded to see that they are whole, and the pixels let go."""
    threads: int = 1
    """Decode a task's images."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Inputs:
    """The inputs of some rows."""

    column: Column | None
    """What they are; None where no row so far was whole."""
    values: np.ndarray
    """Of the good rows, `column.dtype` [good rows, *shape]; of images that stay files nothing, [0]."""
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
    # It takes one whole image to know how large all are when decoded.
    if column is None and plan.form is not None:
        return batch.slice(start, _PIECE_ROWS)
    if column is not None and column.image and not plan.keep_files:
        return batch.slice(start, max(1, _PIECE_BYTES // column.row_bytes))
    # Pixels and numbers take no more memory than they do already; files that stay files are decoded one by one.
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
    # First: damaged rows are null in every column, and null is an error everywhere below.
    batch = _with_stand_ins(batch, errors)
    if len(errors) == batch.num_rows:
        return _nothing(batch, errors.values(), column=column)
    cells = batch.column(0)
    if column is None:
        column = input_column(
            cells, name=plan.name, shape=plan.shape, rows=rows, form=plan.form, resize=plan.resize
        )
    if column is None:
        # Every image is damaged: what they would be brought to is not known, only how they are damaged.
        complaints = check_images(cells, name=plan.name, rows=rows, threads=plan.threads) | errors
        return _nothing(batch, complaints.values(), column=None)
    if column.image and plan.keep_files:
        complaints = check_images(cells, name=plan.name, rows=rows, threads=plan.threads)
        # Of no one shape: each file keeps its own size.
        column, values = replace(column, shape=()), np.zeros(0, np.uint8)
    elif column.image:
        values, complaints = image_values(
            cells, column=column, rows=rows, resizes=bool(plan.resize), threads=plan.threads
        )
    else:
        values, complaints = input_values(cells, column=column, rows=rows), {}
    # Behind the checks: what they say of a stand-in gives way to the row's own error.
    complaints |= errors
    good = np.ones(batch.num_rows, bool)
    good[list(complaints)] = False
    damage = Damage.of(complaints[row] for row in sorted(complaints))
    if len(values) and not good.all():
        # Copied only where something is left out, which is seldom.
        values = values[good]
    return Inputs(column=column, values=values, good=good, damage=damage, batch=batch)


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
    # Any row without an error will do: what is made of it is dropped again.
    source[bad] = np.delete(source, bad)[0]
    return batch.take(pa.array(source))
