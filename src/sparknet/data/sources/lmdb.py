"""LMDB databases of Caffe's Datum records, read in parts by key range, from disks and object stores alike.

The library `lmdb` is not needed for it: see `lmdb_pages`. Nothing is copied to a disk. A local file is mapped. Of a
remote one the driver reads the pages that say where keys begin, and each task its own range of keys, in requests of
8 MB wherever records lie in the file in the order of their keys, as Caffe writes them.
"""

import glob
import mmap
import os
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import accumulate, islice, pairwise
from math import prod
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import ENCODED_IMAGE, LABEL, Column
from sparknet.data.rows.own_size import is_packed, pack
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.datum import Datum, parse
from sparknet.data.sources.files import Location
from sparknet.data.sources.image_batches import binary_array
from sparknet.data.sources.lmdb_pages import Child, Fetch, Tree
from sparknet.data.sources.source import Source
from sparknet.data.storage.place import LOCAL, Facts, Place, Storage
from sparknet.data.storage.remote_file import RemoteFile
from sparknet.errors import DataError

__all__ = ["LmdbPartition", "Records", "RowBatch", "open_source", "read"]

_FILE = "data.mdb"
_PARTITION_BYTES = 64 << 20
_FEWEST_PARTITIONS, _SMALLEST_PARTITION_BYTES = 4, 1 << 20
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 4096
_PIECES = 4  # a leaf page, or a page that LMDB used again, may lie a little behind the records being read
_PIECE_BYTES = 8 << 20  # a smaller request costs more in latency than in bytes
_JUMP_BYTES = 16 << 10
_GROWTH = 32  # from a jump to a whole piece in two steps, so that a jump that leads nowhere costs little
_GAP_BYTES = 1 << 20
_REQUESTS_AT_ONCE = 16
_TRIED = 100  # records at the beginning of which one must be a Datum
_LARGEST_RECORD = 1 << 30  # a batch's bytes are counted in 32 bits

Kind = Literal["pixels", "floats", "encoded"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """What a database's records are, by the first of them."""

    dtype: Literal["uint8", "float32"]
    """Of the values; of encoded images uint8, what they decode to."""
    shape: tuple[int, ...]
    """(channels, height, width); () for encoded images, whose bytes say it."""
    encoded: bool
    """The records are image files (JPEG, PNG, …)."""
    several_sizes: bool = False
    """Pixels may have another height and width than `shape`, and are then `pack`ed with their own."""

    @property
    def kind(self) -> Kind:
        """How the records lie in Arrow."""
        return "encoded" if self.encoded else "pixels" if self.dtype == "uint8" else "floats"


@dataclass(frozen=True, kw_only=True, slots=True)
class LmdbPartition:
    """A range of one database's keys: an input partition."""

    uri: str
    """The file data.mdb."""
    form: Records
    """What the records must be."""
    entries: int
    """Records of the whole database, by which a task sees that it has not changed."""
    first_key: bytes = b""
    """The least that the partition may hold; empty: from the database's first on."""
    stop_key: bytes = b""
    """The least that lies behind it; empty: to the database's last."""
    first_row: int | None = None
    """Number of the first record within the database; None: not known, and the errors count from `first_key`."""
    rows: int | None = None
    """How many records; None: not known before they are read."""


def open_source(where: Location) -> Source:
    """Open databases; the first one's first record says what all records must be.

    They are cut into partitions of about 64 MB, in the order of names and keys. All leaf pages of a local database
    are looked at, so its partitions know their rows. Those of a remote one lie scattered among its records: it is
    cut where its branch pages have keys, which takes less than one small request for each partition, 16 of them at
    once. Leaf pages are looked at only if they are fewer than the partitions. Cutting raises DataError where a
    database is no LMDB file, truncated, empty, damaged as far as it was looked at, or unlike the first.

    Args:
        where: `path` is a database (a directory with data.mdb, or the file), a glob of them, or a directory of
            them; of a remote glob only the last part may have wildcards.

    Raises:
        DataError: nothing is there, or none of the first records is a Datum.
    """
    databases = _databases(where.path, where.storage)
    held: _Held = {}  # cutting begins with the pages that tell what the records are
    with _opened(databases[0], partial(_Pages, held=held)) as (tree, fetch):
        form = _form_of_first(tree, fetch, where=databases[0].uri)
    image = ENCODED_IMAGE if form.encoded else Column(name="image", dtype=form.dtype, shape=form.shape)
    return Source(
        schema=RowSchema(inputs=(image,), targets=(LABEL,)),
        files=[_facts(place) for place in databases],
        # Whole databases: their first records come at once, and where a part ends all leaf pages tell.
        beginning=lambda: [_whole(place, held if place is databases[0] else {}) for place in databases],
        cut=lambda: _partitions(databases, held, several_sizes=where.several_sizes),
    )


def _whole(place: Place, held: "_Held") -> LmdbPartition:
    with _opened(place, partial(_Pages, held=held)) as (tree, fetch):
        form = _form_of_first(tree, fetch, where=place.uri)
        return LmdbPartition(uri=place.uri, form=form, entries=tree.header.entries, first_row=0)


def _partitions(databases: Sequence[Place], held: "_Held", *, several_sizes: bool) -> list[LmdbPartition]:
    """The partitions of all databases; `held` are pages of the first."""
    found = [_partitions_of(place, {} if number else held) for number, place in enumerate(databases)]
    first = found[0][0]
    several_sizes = several_sizes and first.form.kind == "pixels"
    for other, *_ in found[1:]:
        shape = (*other.form.shape[:1], *first.form.shape[1:]) if several_sizes else other.form.shape
        if replace(other.form, shape=shape) != first.form:
            raise DataError(
                f"{other.uri}: {other.form.kind} of shape {other.form.shape}; {first.uri} has {first.form.kind} "
                f"of shape {first.form.shape}: databases that are read together must be alike; name those alone "
                "that are"
            )
    # The shape of all is the first one's: the pixels of the others say their own.
    form = replace(first.form, several_sizes=several_sizes)
    return [replace(part, form=form) for parts in found for part in parts]


def read(partition: LmdbPartition, storage: Storage = LOCAL) -> Iterator[pa.RecordBatch]:
    """Yield a partition's records in the order of their keys.

    Columns: `name` string, the key; `image` binary (uint8 in (channels, height, width) order, or an image file),
    or list<float> where the database holds float_data; `label` int64; `error` string. A record that is no Datum,
    or not of the kind and shape of the database's first, has null for image and label, and `error` says why.

    Raises:
        DataError: the database is missing, truncated or damaged beyond single records.
    """
    place = storage.place(partition.uri)
    batch = RowBatch(
        partition.form, where=place.uri, first_key=partition.first_key if partition.first_row is None else None
    )
    first_row, rows = partition.first_row or 0, 0
    with _opened(place, _Window) as (tree, fetch):
        # The cheapest sign of another database under the same name; the count of rows below is the other.
        if tree.header.entries != partition.entries:
            raise _changed(f"{place.uri}: {tree.header.entries} records; {partition.entries} were there")
        for key, value in _records(tree, fetch, partition.first_key, partition.stop_key):
            batch.append(key, value, first_row + rows)
            rows += 1
            if batch.full:
                yield batch.take()
        if batch.rows:
            yield batch.take()
    if rows != partition.rows and (partition.rows is not None or not rows):
        raise _changed(
            f"{place.uri}: {rows} records from key {_name(partition.first_key)!r} on; "
            f"{partition.rows or 'some'} are needed"
        )


def _changed(what: str) -> DataError:
    return DataError(f"{what}: the database has changed since it was listed; begin again")


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
    return _listed(place, databases="*", files="*.mdb")


def _matching(place: Place) -> list[Place]:
    """The databases that a glob means; of a remote one only the last part may have wildcards."""
    if place.local:
        matches = sorted(glob.glob(str(place.local)))  # noqa: PTH207 - Path.glob takes no absolute pattern
        candidates = [place.storage.place(match) for match in matches]
        found = [at / _FILE if at.local and at.local.is_dir() else at for at in candidates]
        # A glob such as `*.mdb` means the library's lock file too.
        return [at for at in found if at.local and at.local.is_file() and at.name != "lock.mdb"]
    if not set("*?[") & set(place.name):
        return []
    return _listed(place.parent, databases=place.name, files=place.name)


def _listed(directory: Place, *, databases: str, files: str) -> list[Place]:
    """The databases right below a directory whose names match, or else the files in it; it is listed once."""
    inside = directory.children(recursive=True)
    below = [
        at
        for at in inside
        if at.name == _FILE and at.parent.parent.uri == directory.uri and fnmatchcase(at.parent.name, databases)
    ]
    return below or [at for at in inside if at.parent.uri == directory.uri and fnmatchcase(at.name, files)]


def _facts(place: Place) -> Facts:
    facts = place.facts()
    if facts is None:
        raise DataError(f"{place.uri}: no such file; it was there when the path was listed: begin again")
    return facts


def _partitions_of(place: Place, held: "_Held") -> list[LmdbPartition]:
    with _opened(place, partial(_Pages, held=held)) as (tree, fetch):
        form = _form_of_first(tree, fetch, where=place.uri)
        entries, size = tree.header.entries, tree.header.pages * tree.header.page_bytes
        # small partitions of a remote database would cost too much: up to a piece is read beyond the end of each
        fewest = min(_FEWEST_PARTITIONS, -(-size // _SMALLEST_PARTITION_BYTES)) if place.local else 1
        # At least a record each; four partitions of a small local database give four cores something to do.
        count = min(entries, max(fewest, -(-size // _PARTITION_BYTES)))
        cuts = _between_pages(tree, fetch, count) if isinstance(fetch, _Pages) else None
        # A local file's leaf pages are near, and a remote one whose pages are too few has few of them.
        cuts = cuts or _between_rows(tree, count)
    return [
        LmdbPartition(
            uri=place.uri,
            form=form,
            entries=entries,
            first_key=first_key,
            stop_key=stop_key,
            first_row=first_row,
            rows=None if first_row is None or stop_row is None else stop_row - first_row,
        )
        for (first_key, first_row), (stop_key, stop_row) in pairwise([*cuts, (b"", entries)])
    ]


def _between_rows(tree: Tree, count: int) -> list[tuple[bytes, int | None]]:
    """First keys of partitions of equally many rows, and the numbers of those rows; all leaf pages are read."""
    bounds = [tree.header.entries * part // count for part in range(count)]
    cuts, passed = list[tuple[bytes, int | None]](), 0
    for leaf in tree.leaves():
        while len(cuts) < count and bounds[len(cuts)] < passed + len(leaf.keys):
            cuts.append((leaf.keys[bounds[len(cuts)] - passed], bounds[len(cuts)]))
        passed += len(leaf.keys)
    return cuts


def _between_pages(tree: Tree, pages: "_Pages", count: int) -> list[tuple[bytes, int | None]]:
    """First keys of partitions of equally many pages of the highest level that has enough; nothing if none has."""
    header = tree.header
    level, children = 1, list[Child]([(b"", header.root)])
    # Down the tree only until there are enough pages to cut between: the leaves are most of a database.
    while len(children) < count:
        pages.read([number * header.page_bytes for _, number in children], header.page_bytes)
        if level == header.depth:
            return []
        level, children = level + 1, tree.children(children)
    first_keys = [children[len(children) * part // count][0] for part in range(count)]
    return [(key, None if part else 0) for part, key in enumerate(first_keys)]


# -- a database's bytes --


_Held = dict[tuple[int, int], bytes]
"""Bytes by offset and size."""


class _Pages:
    """Few bytes of a remote file: each request fetches what was asked for, once, and adds it to `held`."""

    def __init__(self, file: RemoteFile, held: _Held) -> None:
        self._file = file
        self._held = held

    def __call__(self, offset: int, size: int) -> bytes:
        if (offset, size) not in self._held:
            self._held[offset, size] = _within(self._file, offset, size)
        return self._held[offset, size]

    def read(self, offsets: Iterable[int], size: int) -> None:
        """Fetch pieces of one size, several at once."""
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            list(pool.map(lambda offset: self(offset, size), offsets))


class _Window:
    """The pieces of a remote file that were read last.

    Where reading goes on behind a piece, more and more is fetched. Where it jumps, little is: in a database that
    was not written in the order of its keys, most of a large piece would be fetched in vain.
    """

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._pieces: list[tuple[int, bytes]] = []  # the one used last comes last

    def __call__(self, offset: int, size: int) -> bytes:
        size = min(size, self._file.size - offset)
        if size <= 0:
            return b""
        start, piece = self._held(offset) or self._read(offset, size)
        part = piece[offset - start : offset - start + size]  # a view would keep the piece as long as its row waits
        return part if len(part) == size else part + self(offset + len(part), size - len(part))

    def _held(self, offset: int) -> tuple[int, bytes] | None:
        for at in reversed(range(len(self._pieces))):
            start, piece = self._pieces[at]
            if start <= offset < start + len(piece):
                self._pieces.append(self._pieces.pop(at))
                return start, piece
        return None

    def _read(self, offset: int, size: int) -> tuple[int, bytes]:
        """A new piece that holds all of this, from the end of the piece before it if that is near."""
        start, least = offset, _JUMP_BYTES
        ends = [(at + len(piece), len(piece)) for at, piece in self._pieces]
        near = [end for end in ends if 0 <= offset - end[0] <= _GAP_BYTES]
        if near:
            start, before = max(near)
            least = min(_GROWTH * before, _PIECE_BYTES)
        piece = _within(self._file, start, max(least, offset + size - start))
        # The one used longest ago goes: leaf pages and records alternate between few places.
        self._pieces = [*self._pieces[1 - _PIECES :], (start, piece)]
        return start, piece


def _within(file: RemoteFile, offset: int, size: int) -> bytes:
    """Bytes of the file, fewer at its end."""
    return file.take(offset, max(0, min(size, file.size - offset)))


@contextmanager
def _opened(place: Place, remote: Callable[[RemoteFile], "_Pages | _Window"]) -> Generator[tuple[Tree, Fetch]]:
    """The tree and what gives its bytes; a remote file's as `remote` fetches them."""
    if place.local:
        with _mapped(place.local, where=place.uri) as view:

            def fetch(offset: int, size: int) -> memoryview:
                return view[offset : offset + size]

            yield Tree(fetch, size=len(view), where=place.uri), fetch
        return
    with place.open() as file:
        raw = cast("RemoteFile", file.raw)  # the buffer would read 8 MB for each page
        reader = remote(raw)
        yield Tree(reader, size=raw.size, where=place.uri), reader


@contextmanager
def _mapped(path: Path, *, where: str) -> Generator[memoryview]:
    """The file's bytes. They stay mapped as long as anything views them."""
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise DataError(f"{where}: no LMDB file: it is empty; copy the database again")
            # The file may be closed: the map holds it, and rows that still wait view the map.
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error}; check that every worker reaches it") from error
    yield view


def _records(
    tree: Tree, fetch: Fetch, first_key: bytes = b"", stop_key: bytes = b""
) -> Iterator[tuple[bytes, bytes | memoryview]]:
    """Keys from `first_key` to below `stop_key`, and their values."""
    for leaf in tree.leaves(first_key, stop_key):
        begin = bisect_left(leaf.keys, first_key)
        end = bisect_left(leaf.keys, stop_key) if stop_key else len(leaf.keys)
        offsets, sizes = leaf.offsets[begin:end].tolist(), leaf.sizes[begin:end].tolist()
        for key, offset, size in zip(leaf.keys[begin:end], offsets, sizes, strict=True):
            yield key, fetch(offset, size)


def _form_of_first(tree: Tree, fetch: Fetch, *, where: str) -> Records:
    """What the first record that is a Datum with values says of all."""
    reason = "it is empty"
    for key, value in islice(_records(tree, fetch), _TRIED):
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

    def __init__(self, form: Records, *, where: str, first_key: bytes | None = None) -> None:
        """Begin an empty one.

        Args:
            form: what the records must be.
            where: the database, for the errors.
            first_key: from which the records are counted; not given: from the database's first.
        """
        self._form = form
        self._where = where
        self._from = "" if first_key is None else f" from key {_name(first_key)!r} on"
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

    def append(self, key: bytes, value: bytes | memoryview, row: int) -> None:
        """Add one record, of this number counted from 0."""
        cell, label, error = None, None, None
        try:
            datum = parse(value)
            cell, label = self._cell(datum), datum.label
            self._bytes += len(cell) if isinstance(cell, bytes) else cell.nbytes
        except DataError as why:
            error = f"{self._where}: record {row}{self._from} (key {_name(key)!r}): {why}"
        self._names.append(_name(key))
        self._cells.append(cell)
        self._labels.append(label)
        self._errors.append(error)

    def take(self) -> pa.RecordBatch:
        """Make the batch, and begin another. The values are copied once, into it."""
        make = _lists if self._form.kind == "floats" else binary_array
        columns = [
            pa.array(self._names, pa.string()),
            make(self._cells),
            pa.array(self._labels, pa.int64()),
            pa.array(self._errors, pa.string()),
        ]
        self._start()
        return pa.RecordBatch.from_arrays(columns, names=["name", "image", "label", "error"])

    def _cell(self, datum: Datum) -> bytes | memoryview | np.ndarray:
        form = self._form
        # One kind for a database: Arrow has one type for the column, and a net one shape.
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
            return self._of_other_size(datum, count)
        if form.several_sizes and is_packed(datum.data):
            return pack(_planes(datum))  # pixels that begin by chance as packed ones do
        return values

    def _of_other_size(self, datum: Datum, count: int) -> bytes:
        form = self._form
        what = f"shape {datum.shape} with {count} values; the first record has shape {form.shape}"
        if form.several_sizes and datum.channels == form.shape[0] and min(datum.shape) >= 1:
            if count == prod(datum.shape):
                return pack(_planes(datum))
        elif count == prod(datum.shape) and datum.channels == form.shape[0] and form.kind == "pixels":
            what += " (images of several sizes take a crop_size or data.crop, and no mean image)"
        raise DataError(what)


def _planes(datum: Datum) -> np.ndarray:
    return np.frombuffer(datum.data, np.uint8).reshape(datum.shape)


def _lists(cells: Sequence[np.ndarray | None]) -> pa.Array:
    """An Arrow array of lists of float32; None becomes null."""
    offsets = np.fromiter(accumulate((cell.size if cell is not None else 0 for cell in cells), initial=0), np.int32)
    # With an empty one in front, since there may be no other.
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
