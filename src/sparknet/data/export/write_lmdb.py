"""Rows of any source on their way into another format: whole ones with their numbers, names and cells."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.rows.arrow_values import Rows, encoded_cells, label_values
from sparknet.data.rows.columns import Column
from sparknet.data.rows.inputs import Damage, InputPlan, next_piece, read_inputs
from sparknet.data.sources import datum
from sparknet.errors import DataError

__all__ = ["ConversionPlan", "Converted", "Piece", "Reading", "write_database"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionPlan:
    """How rows are read; it travels to the workers."""

    input: InputPlan
    """How the input column is read."""
    label: str
    """Name of the label column."""
    keep: Literal["pixels", "encoded"]
    """What becomes of encoded images: pixels, or the files as they are."""
    classes: int | None = None
    """Labels must be below this; None: no bound but the general one."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Piece:
    """Some whole rows."""

    rows: np.ndarray
    """Their numbers within the partition, damaged rows counted too, int64 [n]."""
    names: list[str]
    """What the source calls them; empty text where it has no names."""
    labels: np.ndarray
    """int64 [n]."""
    column: Column
    """What `values` are; with `image` set they are files."""
    values: np.ndarray
    """Pixels or numbers, `column.dtype` [n, *shape]; of files what they decode to."""
    files: Any
    """Arrow array of the encoded images, where they are kept; else None."""


class Reading:
    """Reads a partition's rows, piece by piece.

    Attributes:
        damage: rows that were left out so far.
        rows: rows so far, damaged ones too.
    """

    def __init__(self, plan: ConversionPlan, partition: int) -> None:
        self.damage = Damage()
        self._plan = plan
        self._rows = Rows(partition=partition, first=0)
        self._column: Column | None = None

    @property
    def rows(self) -> int:
        """Rows so far, damaged ones too."""
        return self._rows.first

    def pieces(self, batches: Iterable[pa.RecordBatch]) -> Iterator[Piece]:
        """The whole rows of record batches with the columns input, label and maybe name and error.

        Raises:
            DataError: a row that is neither damaged nor as the plan says.
        """
        for batch in batches:
            at = 0
            while at < batch.num_rows:
                part = next_piece(self._plan.input, batch, at, column=self._column)
                piece = self._read(part)
                self._rows = replace(self._rows, first=self._rows.first + part.num_rows)
                at += part.num_rows
                if piece is not None:
                    yield piece

    def _read(self, batch: pa.RecordBatch) -> Piece | None:
        plan, rows = self._plan, self._rows
        found = read_inputs(plan.input, batch, column=self._column, rows=rows)
        self._column = found.column
        self.damage += found.damage
        if found.column is None or not found.good.any():
            return None
        labels = label_values(found.batch.column(1), name=plan.label, classes=plan.classes, rows=rows)
        good = np.flatnonzero(found.good)
        kept, column = None, found.column
        if column.image and plan.keep == "encoded":
            kept = encoded_cells(batch.column(0), name=plan.input.name).take(pa.array(good))
        names: Any = found.batch.column("name").to_pylist() if "name" in batch.schema.names else []
        return Piece(
            rows=rows.first + good,
            names=[names[at] or "" if names else "" for at in good.tolist()],
            labels=labels[good],
            column=column if kept is not None else replace(column, image=None),
            values=found.values,
            files=kept,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """What one task has written."""

    partition: int
    rows: int
    """Whole rows, which are written."""
    directory: str
    """Of the database; "" where there was no row."""
    damage: Damage
    """Rows that were left out."""


def write_database(
    plan: ConversionPlan, batches: Iterable[pa.RecordBatch], *, partition: int, directory: Path
) -> Converted:
    """Write a partition's rows as an LMDB of Caffe's Datum records.

    Keys are `%08d_name`, as Caffe's convert_imageset writes them. Pixels and numbers have their shape in the
    record; of files it is left out, as Caffe does.

    Raises:
        DataError: a row that is neither damaged nor as the plan says, or a directory that cannot be written.
    """
    reading, written = Reading(plan, partition), 0
    pieces = reading.pieces(batches)
    first = next(pieces, None)
    if first is None:
        return Converted(partition=partition, rows=0, directory="", damage=reading.damage)
    with DatabaseWriter(directory) as writer:
        piece: Piece | None = first
        while piece is not None:
            for value, name in zip(_records(piece), piece.names, strict=True):
                writer.append(value, name)
            written += len(piece.labels)
            piece = next(pieces, None)
    with suppress(FileNotFoundError):
        (directory / "lock.mdb").unlink()
    return Converted(partition=partition, rows=written, directory=directory.name, damage=reading.damage)


def _records(piece: Piece) -> Iterator[bytes]:
    labels = piece.labels.tolist()
    if piece.files is not None:
        for cell, label in zip(piece.files, labels, strict=True):
            yield datum.write(data=cell.as_py(), label=label, encoded=True)
        return
    shape = _three(piece.column)
    for row, label in zip(piece.values, labels, strict=True):
        if piece.column.dtype == "uint8":
            yield datum.write(shape=shape, data=row.tobytes(), label=label, encoded=False)
        else:
            yield datum.write(shape=shape, label=label, float_data=row, encoded=False)


def _three(column: Column) -> tuple[int, int, int]:
    """A row's shape as Caffe has it: a vector is that many channels of 1x1."""
    if len(column.shape) > 3:
        raise DataError(
            f"column {column.name} has rows of shape {column.shape}; a Datum has channels, height and width: "
            "flatten them, or set data.shape"
        )
    channels, height, width = (*column.shape, 1, 1, 1)[:3] if column.shape else (1, 1, 1)
    return channels, height, width
