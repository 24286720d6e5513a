"""Rows of any source as an LMDB of Caffe's Datum records."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import pyarrow as pa

from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.rows.columns import Column
from sparknet.data.rows.damage import Damage
from sparknet.data.rows.reading import ReadPlan, RowReader, WholeRows
from sparknet.data.sources import datum
from sparknet.errors import DataError

__all__ = ["Converted", "write_database"]


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
    plan: ReadPlan, batches: Iterable[pa.RecordBatch], *, partition: int, directory: Path
) -> Converted:
    """Write a partition's rows as an LMDB of Caffe's Datum records.

    Keys are `%08d_name`, as Caffe's convert_imageset writes them. Pixels and numbers have their shape in the
    record; of files it is left out, as Caffe does.

    Raises:
        DataError: a row that is neither damaged nor as the plan says, or a directory that cannot be written.
    """
    reader, written = RowReader(plan, partition), 0
    pieces = reader.read(batches)
    first = next(pieces, None)
    if first is None:
        return Converted(partition=partition, rows=0, directory="", damage=reader.damage)
    with DatabaseWriter(directory) as writer:
        for piece in chain([first], pieces):
            names = piece.names.to_pylist() if piece.names is not None else repeat("")
            for value, name in zip(_records(piece), names, strict=False):
                writer.append(value, name or "")
            written += len(piece)
    with suppress(FileNotFoundError):
        (directory / "lock.mdb").unlink()
    return Converted(partition=partition, rows=written, directory=directory.name, damage=reader.damage)


def _records(piece: WholeRows) -> Iterator[bytes]:
    """Of rows whose first column is the record's value and whose second is its label."""
    value, label = piece.columns
    labels = piece.values[label.name].tolist()
    if value.name in piece.files:
        for cell, number in zip(piece.files[value.name], labels, strict=True):
            yield datum.write(data=cell.as_py(), label=number, encoded=True)
        return
    shape = _three(value)
    for row, number in zip(piece.values[value.name], labels, strict=True):
        if value.dtype == "uint8":
            yield datum.write(shape=shape, data=row.tobytes(), label=number, encoded=False)
        else:
            yield datum.write(shape=shape, label=number, float_data=row, encoded=False)


def _three(column: Column) -> tuple[int, int, int]:
    """A row's shape as Caffe has it: a vector is that many channels of 1x1."""
    if len(column.shape) > 3:
        raise DataError(
            f"column {column.name} has rows of shape {column.shape}; a Datum has channels, height and width: "
            "flatten them, or set data.shape"
        )
    channels, height, width = (*column.shape, 1, 1, 1)[:3] if column.shape else (1, 1, 1)
    return channels, height, width
