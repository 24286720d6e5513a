"""LMDB databases of Caffe's Datum records, read in parts by key range.

The library `lmdb` is not needed for it: see `lmdb_pages`.
"""

import glob
import mmap
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate, islice, pairwise
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sparknet.data.datum import Datum, parse
from sparknet.data.lmdb_pages import Tree
from sparknet.data.storage import Facts, Place, Storage
from sparknet.errors import DataError

__all__ = ["LmdbUnit", "Records", "RowBatch", "describe", "files", "read", "units"]

_FILE = "data.mdb"
_UNIT_BYTES = 64 << 20
_FEWEST_UNITS, _SMALLEST_UNIT_BYTES = 4, 1 << 20
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 4096
_COPY_BYTES = 8 << 20
_TRIED = 100  # records at the beginning of which one must be a Datum
_LARGEST_RECORD = 1 << 30  # a batch's bytes are counted in 32 bits

Kind = Literal["pixels", "floats", "encoded"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LmdbUnit:
    """Consecutive records of one database: what one task reads."""

    uri: str
    """The file data.mdb."""
    first_key: bytes = b""
    """Of the first record; empty: the database's first."""
    rows: int | None = None
    """How many records; None: all that are there."""
    first_row: int = 0
    """Number of the first record within the database."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """What a database's records are, by the first of them."""

    dtype: Literal["uint8", "float32"]
    """Of the values; of encoded images uint8, what they decode to."""
    shape: tuple[int, ...]
    """(channels, height, width); () for encoded images, whose bytes say it."""
    encoded: bool
    """The records are image files (JPEG, PNG, …)."""

    @property
    def kind(self) -> Kind:
        """How the records lie in Arrow."""
        return "encoded" if self.encoded else "pixels" if self.dtype == "uint8" else "floats"


def units(path: str, storage: Storage) -> list[LmdbUnit]:
    """Cut the databases that a path means into units of about 64 MB, in the order of names and keys.

    A remote database is one unit: the task that reads it copies it first.

    Args:
        path: a database (a directory with data.mdb, or the file), a glob of them, or a directory of them; of a
            remote glob only the last part may have wildcards.
        storage: how it is reached.

    Raises:
        DataError: nothing is there, or a database is no LMDB file, truncated, empty, damaged as far as it can be
            told (of a remote one only the beginning is looked at), or unlike the first.
    """
    places = _databases(path, storage)
    first = _form_at(places[0])
    for place in places[1:]:
        form = _form_at(place)
        if form != first:
            raise DataError(
                f"{place.uri}: {form.kind} of shape {form.shape}; {places[0].uri} has {first.kind} of shape "
                f"{first.shape}: databases that are read together must be alike; name those alone that are"
            )
    return [unit for place in places for unit in _units_of(place)]


def files(path: str, storage: Storage) -> list[Facts]:
    """List the files data.mdb that `units` of the same arguments read.

    Raises:
        DataError: nothing is there.
    """
    return [_facts(place) for place in _databases(path, storage)]


def describe(path: str, storage: Storage) -> Records:
    """Tell from the first database's first record what all records must be.

    Raises:
        DataError: nothing is there, or none of the first records is a Datum.
    """
    return _form_at(_databases(path, storage)[0])


def read(unit: LmdbUnit, storage: Storage) -> Iterator[pa.RecordBatch]:
    """Yield a unit's records in the order of their keys.

    Columns: `name` string, the key; `image` binary (uint8 in (channels, height, width) order, or an image file),
    or list<float> where the database holds float_data; `label` int64; `error` string. A record that is no Datum,
    or not of the kind and shape of the database's first, has null for image and label, and `error` says why.

    Raises:
        DataError: the database is missing, truncated or damaged beyond single records.
    """
    place = storage.place(unit.uri)
    with _at_hand(place) as path, _mapped(path, where=place.uri) as view:

        def fetch(offset: int, size: int) -> memoryview:
            return view[offset : offset + size]

        tree = Tree(fetch, size=len(view), where=place.uri)
        form = _form_of_first(tree, fetch, where=place.uri)
        batch = RowBatch(form, where=place.uri)
        rows = 0
        for row, (key, value) in enumerate(_records(tree, fetch, unit), start=unit.first_row):
            rows += 1
            batch.append(key, value, row)
            if batch.full:
                yield batch.take()
        if batch.rows:
            yield batch.take()
    if rows != unit.rows and (unit.rows is not None or not rows):
        raise DataError(
            f"{place.uri}: {rows} records from key {_name(unit.first_key)!r} on; {unit.rows or 'some'} are needed: "
            "the database is empty or has changed since it was listed; begin again"
        )


# -- which databases, and which parts of them --


def _databases(path: str, storage: Storage) -> list[Place]:
    """The files data.mdb that a path means, by name."""
    place = storage.place(path)
    facts = place.facts()
    found = _matching(place) if facts is None else _in_directory(place) if facts.is_directory else [place]
    if not found:
        raise DataError(
            f"{path}: no LMDB database; name a directory with {_FILE}, the file, a glob, or a directory of "
            "databases: set data.path"
        )
    return found


def _in_directory(place: Place) -> list[Place]:
    own = place / _FILE
    if own.facts() is not None:
        return [own]
    below = [file for file in place.children(_FILE, recursive=True) if file.parent.parent.uri == place.uri]
    return below or place.children("*.mdb")


def _matching(place: Place) -> list[Place]:
    """The databases that a glob means; of a remote one only the last part may have wildcards."""
    if place.local:
        matches = sorted(glob.glob(str(place.local)))  # noqa: PTH207 - Path.glob takes no absolute pattern
        candidates = [place.storage.place(match) for match in matches]
        found = [at / _FILE if at.local and at.local.is_dir() else at for at in candidates]
        return [at for at in found if at.local and at.local.is_file() and at.name != "lock.mdb"]
    if not set("*?[") & set(place.name):
        return []
    inside = place.parent.children(_FILE, recursive=True)
    below = [
        at for at in inside if at.parent.parent.uri == place.parent.uri and fnmatchcase(at.parent.name, place.name)
    ]
    return below or place.parent.children(place.name)


def _facts(place: Place) -> Facts:
    facts = place.facts()
    if facts is None:
        raise DataError(f"{place.uri}: no such file; it was there when the path was listed: begin again")
    return facts


def _units_of(place: Place) -> list[LmdbUnit]:
    if not place.local:
        return [LmdbUnit(uri=place.uri)]
    with _mapped(place.local, where=place.uri) as view:
        tree = Tree(lambda offset, size: view[offset : offset + size], size=len(view), where=place.uri)
        rows, size = tree.header.entries, tree.header.pages * tree.header.page_bytes
        if not rows:
            raise DataError(f"{place.uri}: the database is empty; it must hold at least one record: write it again")
        fewest = min(_FEWEST_UNITS, -(-size // _SMALLEST_UNIT_BYTES))
        count = min(rows, max(fewest, -(-size // _UNIT_BYTES)))
        bounds = [rows * part // count for part in range(count + 1)]
        first_keys, passed = list[bytes](), 0
        for leaf in tree.leaves():
            while len(first_keys) < count and bounds[len(first_keys)] < passed + len(leaf.keys):
                first_keys.append(leaf.keys[bounds[len(first_keys)] - passed])
            passed += len(leaf.keys)
    return [
        LmdbUnit(uri=place.uri, first_key=key, rows=bounds[part + 1] - bounds[part], first_row=bounds[part])
        for part, key in enumerate(first_keys)
    ]


# -- a database's bytes --


@contextmanager
def _at_hand(place: Place) -> Generator[Path]:
    """The file itself, or for a remote one a copy, which is removed in the end."""
    if place.local:
        yield place.local
        return
    with tempfile.TemporaryDirectory(prefix="sparknet-lmdb-") as directory:
        copy = Path(directory) / _FILE
        try:
            with place.open() as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, _COPY_BYTES)
        except OSError as error:
            raise DataError(
                f"{place.uri}: cannot be copied to {directory}: {error}; make room there or set TMPDIR"
            ) from error
        yield copy


@contextmanager
def _mapped(path: Path, *, where: str) -> Generator[memoryview]:
    """The file's bytes. They stay mapped as long as anything views them."""
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise DataError(f"{where}: no LMDB file: it is empty; copy the database again")
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error}; check that every worker reaches it") from error
    yield view


def _records(tree: Tree, fetch: Any, unit: LmdbUnit) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of a unit's records."""

    def all_from_first() -> Iterator[tuple[bytes, memoryview]]:
        for leaf in tree.leaves(unit.first_key):
            spans = zip(leaf.keys, leaf.offsets.tolist(), leaf.sizes.tolist(), strict=True)
            yield from ((key, fetch(offset, size)) for key, offset, size in spans if key >= unit.first_key)

    return islice(all_from_first(), unit.rows)


def _form_at(place: Place) -> Records:
    """What a database's records are; of a remote one, as few bytes as possible are read."""
    size = _facts(place).bytes
    with place.open() as file:

        def fetch(offset: int, count: int) -> bytes:
            file.raw.seek(offset, os.SEEK_SET)  # the buffer would read 8 MB for each page
            data = b""
            while len(data) < count and (piece := file.raw.read(count - len(data))):
                data += piece
            return data

        return _form_of_first(Tree(fetch, size=size, where=place.uri), fetch, where=place.uri)


def _form_of_first(tree: Tree, fetch: Any, *, where: str) -> Records:
    """What the first record that is a Datum with values says of all."""
    reason = "it is empty"
    for key, value in _records(tree, fetch, LmdbUnit(uri=where, rows=_TRIED)):
        try:
            form = _form(parse(value))
            if form.kind != "encoded" and min(form.shape) < 1:
                raise DataError(f"shape {form.shape}")
            return form
        except DataError as error:
            reason = f"record {_name(key)!r}: {error}"
    raise DataError(
        f"{where}: no Caffe Datum among the first records ({reason}); name a database of Datum records, as Caffe's "
        "convert_imageset writes them"
    )


def _form(datum: Datum) -> Records:
    """What Caffe takes a record for: bytes before float_data, where it has both."""
    if datum.encoded:
        return Records(dtype="uint8", shape=(), encoded=True)
    return Records(dtype="uint8" if len(datum.data) else "float32", shape=datum.shape, encoded=False)


# -- rows --


class RowBatch:
    """Collects records, each a row or an error, and makes one record batch of them."""

    def __init__(self, form: Records, *, where: str) -> None:
        """Begin an empty one.

        Args:
            form: what the records must be.
            where: the database, for the errors.
        """
        self._form = form
        self._where = where
        self._start()

    def _start(self) -> None:
        self._names: list[str] = []
        self._cells: list[Any] = []
        self._labels: list[int | None] = []
        self._errors: list[str | None] = []
        self._bytes = 0

    @property
    def rows(self) -> int:
        """Collected so far."""
        return len(self._names)

    @property
    def full(self) -> bool:
        """It is time to take them."""
        return self._bytes >= _BATCH_BYTES or self.rows >= _BATCH_ROWS

    def append(self, key: bytes, value: memoryview, row: int) -> None:
        """Add one record, of this number within the database."""
        cell, label, error = None, None, None
        try:
            datum = parse(value)
            cell, label = self._cell(datum), datum.label
            self._bytes += cell.nbytes
        except DataError as why:
            error = f"{self._where}: record {row} (key {_name(key)!r}): {why}"
        self._names.append(_name(key))
        self._cells.append(cell)
        self._labels.append(label)
        self._errors.append(error)

    def take(self) -> pa.RecordBatch:
        """Make the batch, and begin another. The values are copied once, into it."""
        make = _lists if self._form.kind == "floats" else _binaries
        columns = [
            pa.array(self._names, pa.string()),
            make(self._cells),
            pa.array(self._labels, pa.int64()),
            pa.array(self._errors, pa.string()),
        ]
        self._start()
        return pa.RecordBatch.from_arrays(columns, names=["name", "image", "label", "error"])

    def _cell(self, datum: Datum) -> memoryview | np.ndarray:
        form = self._form
        if datum.encoded != form.encoded:
            raise DataError(
                "an encoded image among pixels" if datum.encoded else "no encoded image as the first is"
            )
        if form.kind == "floats":
            if datum.float_data is None:
                raise DataError("it has no float_data, which the first record has")
            values, count = datum.float_data, datum.float_data.size
        else:
            values, count = datum.data, len(datum.data)
            if not 0 < count <= _LARGEST_RECORD:
                raise DataError(f"it has {count} bytes of data; a record has 1 to {_LARGEST_RECORD}")
        if not form.encoded and (datum.shape != form.shape or count != prod(form.shape)):
            raise DataError(f"shape {datum.shape} with {count} values; the first record has shape {form.shape}")
        return values


def _binaries(cells: Sequence[memoryview | None]) -> pa.Array:
    """An Arrow array of binary; None becomes null."""
    offsets = np.fromiter(accumulate((len(cell) if cell is not None else 0 for cell in cells), initial=0), np.int32)
    buffer: Any = pa.allocate_buffer(int(offsets[-1]))
    data = memoryview(buffer).cast("B")
    for cell, (begin, end) in zip(cells, pairwise(offsets.tolist()), strict=True):
        if cell is not None:
            data[begin:end] = cell
    buffers = [_validity(cells), pa.py_buffer(offsets), buffer]
    return pa.BinaryArray.from_buffers(pa.binary(), len(cells), buffers)


def _lists(cells: Sequence[np.ndarray | None]) -> pa.Array:
    """An Arrow array of lists of float32; None becomes null."""
    offsets = np.fromiter(accumulate((cell.size if cell is not None else 0 for cell in cells), initial=0), np.int32)
    values = np.concatenate([np.empty(0, np.float32), *(cell for cell in cells if cell is not None)])
    buffers = [_validity(cells), pa.py_buffer(offsets)]
    kind = pa.list_(pa.float32())
    return pa.ListArray.from_buffers(kind, len(cells), buffers, children=[pa.array(values, pa.float32())])


def _validity(cells: Sequence[object]) -> Any:
    if all(cell is not None for cell in cells):
        return None
    return pa.array([cell is not None for cell in cells], pa.bool_()).buffers()[1]


def _name(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
