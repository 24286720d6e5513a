"""HDF5 files whose data sets are columns: the first axis of each counts the rows, as Caffe's HDF5Data reads them.

A path is such a file, a directory or glob of them, or a list that names one a line, as Caffe has it. Every kind of
number is read: bytes stay bytes, other whole numbers become int64, fractions float32.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import Location, find_files, ranges
from sparknet.data.sources.listed_names import lines_of, root_of
from sparknet.data.sources.source import Source
from sparknet.data.storage.place import LOCAL, Facts, Place, Storage
from sparknet.errors import DataError

__all__ = ["Hdf5Partition", "column_names", "open_source", "read"]

_PARTITION_BYTES = 32 << 20
_BATCH_BYTES = 8 << 20
_SUFFIXES = ("*.h5", "*.hdf5")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hdf5Partition:
    """Rows `start` to `stop` (exclusive) of one file: an input partition."""

    path: str
    columns: tuple[Column, ...]
    start: int
    stop: int


def open_source(where: Location) -> Source:
    """Open files; the first one says what the columns are, and all must have them so.

    Args:
        where: `columns` are the data sets that are read; () reads all that have rows.

    Raises:
        DataError: nothing is there, a file is no HDF5, lacks a data set or has it otherwise than the first, or its
            data sets have different numbers of rows.
    """
    files, listing = _files(where)
    columns, _ = _described(files[0], where.columns)
    counts = [_rows_as_in_first(file, columns, files[0]) for file in files]
    return Source(
        schema=RowSchema(inputs=columns, targets=columns),
        files=[*listing, *files],
        cut=lambda: [
            Hdf5Partition(path=file.uri, columns=columns, start=start, stop=stop)
            for file, count in zip(files, counts, strict=True)
            for start, stop in ranges(0, count, _rows_in(columns, _PARTITION_BYTES))
        ],
    )


def column_names(where: Location) -> tuple[str, ...]:
    """Names of the first file's data sets that have rows.

    Raises:
        DataError: nothing is there, or it is no HDF5.
    """
    columns, _ = _described(_files(where)[0][0], ())
    return tuple(column.name for column in columns)


def read(partition: Hdf5Partition, storage: Storage = LOCAL) -> Iterator[pa.RecordBatch]:
    """Yield the partition's rows: bytes as binary, other numbers as lists, single ones as they are.

    Raises:
        DataError: the file is gone, damaged, or has changed.
    """
    path = storage.place(partition.path)
    with _opened(path) as file:
        for start, stop in ranges(partition.start, partition.stop, _rows_in(partition.columns, _BATCH_BYTES)):
            arrays: list[Any] = []
            for column in partition.columns:
                values = np.asarray(file[column.name][start:stop])
                if len(values) != stop - start:
                    raise DataError(f"{path}: data set {column.name!r} has lost rows; files must stay as they are")
                arrays.append(_cells(values, column))
            yield pa.record_batch(arrays, names=[column.name for column in partition.columns])


def _files(where: Location) -> tuple[Sequence[Facts], Sequence[Facts]]:
    """The HDF5 files in their order, and the list that names them, if there is one."""
    place = where.storage.place(where.path)
    facts = place.facts()
    if facts is not None and not facts.is_directory and not h5py.is_hdf5(_local(place)):
        return _listed(place, where), [facts]
    found = find_files(where.path, in_directory=_SUFFIXES, what="HDF5 files", storage=where.storage)
    return found, []


def _listed(place: Place, where: Location) -> Sequence[Facts]:
    lines = list(lines_of(place))
    root = root_of(place, lines[0][1], root=where.root, storage=where.storage)
    files: list[Facts] = []
    for number, name in lines:
        file = where.storage.place(name) if name.startswith("/") else root / name
        facts = file.facts()
        if facts is None or facts.is_directory:
            raise DataError(
                f"{place}: line {number} names {file}, which is no file; {place} is no HDF5 file itself, so each "
                "line must name one: correct it, or name the HDF5 file"
            )
        files.append(facts)
    return files


def _local(place: Place) -> Path:
    if place.local is None:
        raise DataError(
            f"{place}: HDF5 files are read from local and shared disks; their parts lie scattered, which an object "
            "store answers slowly: copy them to where every worker reaches them, or convert them to Parquet"
        )
    return place.local


@contextmanager
def _opened(place: Place) -> Generator[Any]:
    try:
        with h5py.File(_local(place), "r") as file:
            yield file
    # h5py raises all of these for files that are damaged.
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DataError(f"{place}: it cannot be read as HDF5: {error}; give a whole file") from error


def _described(file: Facts, names: Sequence[str]) -> tuple[tuple[Column, ...], int]:
    """The columns of a file, and its rows."""
    place = LOCAL.place(file.uri)
    with _opened(place) as opened:
        found = {name: opened[name] for name in opened if isinstance(opened[name], h5py.Dataset)}
        for name in names:
            if name not in found or not found[name].shape:
                raise DataError(
                    f"{place}: there is no data set {name!r} whose first axis counts rows; there are "
                    f"{', '.join(found) or 'none'}: correct data.inputs, data.targets or the net's tops"
                )
        chosen = {name: one for name, one in found.items() if (name in names if names else one.shape)}
        rows = {name: one.shape[0] for name, one in chosen.items()}
        if len(set(rows.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in rows.items())
            raise DataError(
                f"{place}: the data sets have different numbers of rows ({told}); give files of as many"
            )
        columns = tuple(
            Column(
                name=name,
                dtype=_dtype(one, place, name),
                shape=tuple(one.shape[1:]),
                # Whether numbers are classes, whoever uses them decides.
                classes=0 if len(one.shape) == 1 else None,
            )
            # In the order asked for: the file has them in alphabetical order.
            for name, one in ((name, chosen[name]) for name in names or chosen)
        )
    return columns, next(iter(rows.values()), 0)


def _dtype(data_set: Any, place: Place, name: str) -> Literal["uint8", "float32", "int64"]:
    found: np.dtype[Any] = data_set.dtype
    if found == np.uint8 and len(data_set.shape) > 1:
        return "uint8"
    if found == np.uint64:
        # As int64 the upper half would silently become negative.
        raise DataError(f"{place}: data set {name!r} holds uint64; whole numbers must fit int64: convert it")
    if found.kind in "iub":
        return "int64"
    if found.kind == "f":
        return "float32"
    raise DataError(f"{place}: data set {name!r} holds {found}; it must hold numbers: leave it out or convert it")


def _rows_as_in_first(file: Facts, columns: tuple[Column, ...], first: Facts) -> int:
    found, rows = _described(file, [column.name for column in columns])
    for here, there in zip(found, columns, strict=True):
        if here != there:
            raise DataError(
                f"{file.uri}: data set {here.name!r} holds {here.dtype} of shape {here.shape} a row, and that of "
                f"{first.uri} {there.dtype} of {there.shape}; all files must be alike: convert one of them"
            )
    return rows


def _rows_in(columns: Sequence[Column], most_bytes: int) -> int:
    return max(1, most_bytes // max(1, sum(column.row_bytes for column in columns)))


def _cells(values: np.ndarray, column: Column) -> Any:
    if column.dtype == "uint8":
        return pa.array([row.tobytes() for row in np.ascontiguousarray(values)], pa.binary())
    flat = pa.array(np.ascontiguousarray(values, np.int64 if column.dtype != "float32" else np.float32).reshape(-1))
    if not column.shape:
        return flat
    edges = np.arange(len(values) + 1, dtype=np.int32) * np.int32(prod(column.shape))
    return pa.ListArray.from_arrays(pa.array(edges), flat)
