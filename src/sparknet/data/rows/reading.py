"""Rows as a task gets them, piece by piece: whole ones checked and decoded, damaged ones counted and left out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from sparknet.data.rows.arrow_values import (
    Rows,
    check_images,
    column_of,
    encoded_cells,
    image_values,
    images_of_own_size,
    validation_marks,
    values_of,
)
from sparknet.data.rows.column_plan import ColumnPlan
from sparknet.data.rows.columns import Column, ImageForm
from sparknet.data.rows.damage import Damage
from sparknet.data.rows.extremes import Extremes
from sparknet.data.rows.own_size import pack
from sparknet.data.rows.ragged import Cells
from sparknet.errors import DataError

__all__ = ["ReadPlan", "RowReader", "WholeRows"]

_PIECE_BYTES = 64 << 20  # of decoded images: a batch of Spark's is 10,000 rows, or 2 GB of 3x256x256
_PIECE_ROWS = 16  # before it is known what a row is


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadPlan:
    """How rows are read; it travels to the workers."""

    columns: tuple[ColumnPlan, ...]
    """The columns in their order."""
    validation: str = ""
    """What names the column of marks, for messages; empty: the rows are not marked."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class WholeRows:
    """The whole ones among some consecutive rows."""

    partition: int
    """The input partition that they come from."""
    first: int
    """Number of the first of those rows within the partition, damaged ones counted too."""
    good: np.ndarray
    """Which of those rows are whole, bool; the others are damaged."""
    names: Any
    """Arrow array of what the source calls the whole rows; None where it has no names."""
    marks: np.ndarray | None
    """Which are validation rows, bool [n]; None where they are not marked."""
    columns: tuple[Column, ...]
    """What the rows are; a column with `image` set is kept as files."""
    values: Mapping[str, np.ndarray]
    """By column pixels or numbers, `dtype` [n, *shape]; of files what they decode to, unless they are only checked:
    then nothing, [0]. Of images that keep their own sizes each one's pixels, object [n]."""
    files: Mapping[str, Any]
    """By column, where they are kept, an Arrow array of the encoded images, or of `pack`ed pixels."""
    judged: tuple[str, ...]
    """The columns whose outermost values are kept, for those who take some numbers only."""

    def __len__(self) -> int:
        return int(self.good.sum())

    @property
    def numbers(self) -> np.ndarray:
        """Of the whole rows within the partition, int64 [n]."""
        return self.first + np.flatnonzero(self.good)

    def extremes(self, chosen: np.ndarray) -> dict[str, Extremes]:
        """Of each column that is judged the outermost values of the rows `chosen`, bool [n].

        Of images that are only checked there are none.
        """
        places = np.flatnonzero(chosen)
        numbers = self.numbers

        def name(at: int) -> str:
            place = places[at]
            names = None if self.names is None else self.names.slice(place, 1)
            return Rows(partition=self.partition, first=int(numbers[place]), names=names).name(0)

        return {
            column: Extremes.of(self.values[column][chosen], name)
            for column in self.judged
            if len(self.values[column]) == len(chosen)
        }

    def stored(self, chosen: np.ndarray | None = None) -> tuple[dict[str, np.ndarray], dict[str, Cells]]:
        """Values and files by column, of all rows or of those `chosen`, bool [n]."""
        if chosen is None:
            return dict(self.values), {name: Cells.of(files) for name, files in self.files.items()}
        mask = pa.array(chosen)
        return (
            {name: values[chosen] for name, values in self.values.items()},
            {name: Cells.of(files.filter(mask)) for name, files in self.files.items()},
        )


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Cells:
    """One column of all rows of a piece."""

    column: Column | None
    """What they are; None where no row so far was whole."""
    values: np.ndarray
    """Of all rows; of images that are only checked nothing, [0]."""
    complaints: dict[int, str]
    """By row what is wrong with it."""


class RowReader:
    """Reads a partition's rows.

    Attributes:
        damage: rows that were left out so far.
    """

    def __init__(self, plan: ReadPlan, partition: int) -> None:
        self.damage = Damage()
        self._plan = plan
        self._rows = Rows(partition=partition, first=0)
        self._columns: list[Column | None] = [None] * len(plan.columns)

    @property
    def rows(self) -> int:
        """Rows so far, damaged ones too."""
        return self._rows.first

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the rows so far are, of images that keep their own sizes the least; () before a whole one."""
        found = tuple(column for column in self._columns if column is not None)
        return found if len(found) == len(self._columns) else ()

    def read(self, batches: Iterable[pa.RecordBatch]) -> Iterator[WholeRows]:
        """The whole rows, in pieces that take little memory when decoded.

        Args:
            batches: the plan's columns in their order (see `column_of`), and behind them, if the plan says so,
                validation (boolean); and maybe `name` (string), `error` (string): what is wrong with a damaged row,
                null for others, and `fault` (string): what is wrong with a row that must not be left out, null for
                others.

        Raises:
            DataError: a row that is neither damaged nor as the plan says.
        """
        for batch in batches:
            at = 0
            while at < batch.num_rows:
                # Piece by piece, since Spark's batches are cut by rows: 10,000 images are 2 GB when decoded.
                piece = batch.slice(at, self._piece_rows())
                found = self._read(piece)
                # Damaged rows count: held-out rows and names must not move when one is repaired.
                self._rows = replace(self._rows, first=self._rows.first + piece.num_rows)
                at += piece.num_rows
                if found is not None:
                    yield found

    def _piece_rows(self) -> int | None:
        """The most rows of a piece; None: all, since they take no more memory than they do already."""
        decoded = 0
        for plan, column in zip(self._plan.columns, self._columns, strict=True):
            # It takes one whole image to know how large all are when decoded.
            if (column is None and plan.form is not None) or plan.own_size == "yes" or plan.cut:
                return _PIECE_ROWS
            # Files that are only checked are decoded one by one.
            if column is not None and column.image and not plan.check_only:
                decoded += column.row_bytes
        return max(1, _PIECE_BYTES // decoded) if decoded else None

    def _read(self, batch: pa.RecordBatch) -> WholeRows | None:
        plan, count = self._plan, batch.num_rows
        # Before anything is counted or decoded: a fault ends the task, whatever else the rows hold.
        _refuse_faults(batch)
        errors, rows = _errors(batch), self._rows
        if "name" in batch.schema.names:
            rows = replace(rows, names=batch.column("name"))
        if len(errors) == count:
            self.damage += Damage.of(errors.values())
            return None
        # First: damaged rows are null in every column, and null is an error everywhere below. So all rows are
        # checked, with stand-ins for damaged ones, and an error names a row by its number in the source.
        whole = _with_stand_ins(batch, errors)
        found = [
            _read_cells(one, whole.column(at), column=self._columns[at], rows=rows)
            for at, one in enumerate(plan.columns)
        ]
        # What the first whole row was, all others must be.
        self._columns = [cells.column for cells in found]
        # Behind the checks: what they say of a stand-in gives way to the row's own error.
        complaints = {row: why for cells in reversed(found) for row, why in cells.complaints.items()} | errors
        self.damage += Damage.of(complaints[row] for row in sorted(complaints))
        good = np.ones(count, bool)
        good[list(complaints)] = False
        if not good.any() or None in self._columns:
            return None
        marks = None
        if plan.validation:
            marks = validation_marks(whole.column(len(found)), name=plan.validation, rows=rows)[good]
        return self._whole(found, batch, good=good, marks=marks)

    def _whole(
        self, found: list[_Cells], batch: pa.RecordBatch, *, good: np.ndarray, marks: np.ndarray | None
    ) -> WholeRows:
        chosen, all_good = pa.array(good), bool(good.all())
        values, files, columns = dict[str, np.ndarray](), dict[str, Any](), list[Column]()
        for at, (plan, cells) in enumerate(zip(self._plan.columns, found, strict=True)):
            column = cells.column
            assert column is not None, "the caller has looked"
            # Copied only where something is left out, which is seldom.
            values[plan.name] = cells.values if all_good or not len(cells.values) else cells.values[good]
            packed = column.own_size and (plan.keep == "pixels" or plan.form is None)
            kept = packed or (column.image is not None and plan.keep == "encoded")
            if packed:
                cells_of_good = [pack(image) for image in values[plan.name]]
                files[plan.name] = pa.array(cells_of_good, pa.large_binary())
            elif kept:
                # not of the batch in which other cells stand in for those of damaged rows
                array: Any = encoded_cells(batch.column(at), name=plan.name)
                files[plan.name] = array if all_good else array.filter(chosen)
            columns.append(column if kept else replace(column, image=None))
        names: Any = batch.column("name") if "name" in batch.schema.names else None
        return WholeRows(
            partition=self._rows.partition,
            first=self._rows.first,
            good=good,
            names=None if names is None else names.filter(chosen),
            marks=marks,
            columns=tuple(columns),
            values=values,
            files=files,
            judged=tuple(
                plan.name
                for plan, column in zip(self._plan.columns, columns, strict=True)
                # Inputs that are whole numbers are places in a table, as Embed takes them.
                if plan.target or column.dtype == "int64"
            ),
        )


def _read_cells(plan: ColumnPlan, array: Any, *, column: Column | None, rows: Rows) -> _Cells:
    """Check and decode one column of some rows; `column` is what earlier rows have shown it to be."""
    if plan.own_size == "yes" or plan.cut:
        return _read_sized(plan, array, column=column, rows=rows)
    column = column or column_of(array, plan=plan, rows=rows)
    if column is None or (column.image and plan.check_only):
        # Every image is damaged: what they would be brought to is not known, only how they are damaged. Or each
        # keeps its own size.
        form = plan.form or ImageForm()
        complaints = check_images(array, name=plan.name, form=form, rows=rows, threads=plan.threads)
        return _Cells(
            column=column and replace(column, shape=()), values=np.zeros(0, np.uint8), complaints=complaints
        )
    if column.image:
        values, complaints = image_values(
            array,
            column=column,
            rows=rows,
            resizes=bool(plan.resize),
            several=plan.own_size == "if_needed",
            threads=plan.threads,
        )
        return _Cells(column=column, values=values, complaints=complaints)
    return _Cells(column=column, values=values_of(array, column=column, plan=plan, rows=rows), complaints={})


def _read_sized(plan: ColumnPlan, array: Any, *, column: Column | None, rows: Rows) -> _Cells:
    """Decode images of several sizes, to be kept so, or to be cut to one at once."""
    # Without its own form the source's bytes are pixels, which have no order but that of the net.
    form = plan.form or ImageForm(as_stored=True)
    shape = plan.shape if plan.form is None else column and column.shape
    if not shape:
        first = column_of(array, plan=plan, rows=rows)
        if first is None:
            complaints = check_images(array, name=plan.name, form=form, rows=rows, threads=plan.threads)
            return _Cells(column=None, values=np.zeros(0, np.uint8), complaints=complaints)
        shape = first.shape
    known = Column(name=plan.name, dtype="uint8", shape=shape, image=replace(form, own_size=True))
    images, complaints = images_of_own_size(
        array, column=known, bare=plan.form is None, rows=rows, threads=plan.threads
    )
    if plan.cut:
        cut = replace(known, shape=(shape[0], plan.cut, plan.cut), image=None)
        return _Cells(column=cut, values=_cut_out(images, cut, rows=rows), complaints=complaints)
    sizes = [image.shape[1:] for image in images if image is not None]
    # Of earlier pieces too; of the first one its own, which may be of no image that is kept.
    sizes += [column.shape[1:]] if column is not None else []
    least = tuple(min(side) for side in zip(*sizes, strict=True)) if sizes else shape[1:]
    return _Cells(column=replace(known, shape=(shape[0], *least)), values=images, complaints=complaints)


def _cut_out(images: np.ndarray, column: Column, *, rows: Rows) -> np.ndarray:
    """The middle of each image, uint8 [n, *shape]; 0 where there is none."""
    side, result = column.shape[1], np.zeros((len(images), *column.shape), np.uint8)
    for at, image in enumerate(images):
        if image is None:
            continue
        height, width = image.shape[1:]
        if min(height, width) < side:
            raise DataError(
                f"column {column.name}: {rows.name(at)} is an image of {height} x {width} (height x width), and "
                f"crop_size is {side}; images must be at least as large: lower it, or give larger images"
            )
        # Rounded down, as Caffe's data transformer cuts in TEST.
        y, x = (height - side) // 2, (width - side) // 2
        result[at] = image[:, y : y + side, x : x + side]
    return result


def _errors(batch: pa.RecordBatch) -> dict[int, str]:
    """What the column `error` says, by row."""
    if "error" not in batch.schema.names:
        return {}
    column: Any = batch.column("error")
    bad = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)).tolist()
    return {row: column[row].as_py() for row in bad}


def _with_stand_ins(batch: pa.RecordBatch, errors: dict[int, str]) -> pa.RecordBatch:
    if not errors:
        return batch
    source = np.arange(batch.num_rows)
    bad = list(errors)
    # Any row without an error will do: what is made of it is dropped again.
    source[bad] = np.delete(source, bad)[0]
    return batch.take(pa.array(source))


def _refuse_faults(batch: pa.RecordBatch) -> None:
    if "fault" in batch.schema.names:
        faults: Any = batch.column("fault").drop_null()
        if len(faults):
            raise DataError(faults[0].as_py())
