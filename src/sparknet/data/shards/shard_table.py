"""Shards: immutable Arrow files of rows, written once, then memory-mapped by every worker.

A shard is an uncompressed Arrow IPC file with exactly one record batch, so that each column is one
contiguous piece of the file: numpy reads it in place. A column of images may be stored as the encoded files
(`Column.image`), which are decoded whenever they are read. Images of several sizes are stored as files, or as
pixels with their size before them, and a square is cut out of each as it is read.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import Column, ImageForm, schema_of
from sparknet.data.rows.ragged import Cells
from sparknet.data.shards.shard import Shard
from sparknet.data.shards.shard_files import InPlace, ShardFiles
from sparknet.data.shards.shard_writer import ShardWriter, WrittenShard
from sparknet.errors import BadImage, DataError

__all__ = ["Cut", "Shard", "ShardTable", "ShardWriter", "WrittenShard"]

_SMALL_ROW_BYTES = 1 << 12
"""Numpy takes longer to set up the copy of a smaller row than to make it."""
_FETCHED_OPEN = 4
"""So many fetched shards stay open where nobody tells what is read next, as in a validation."""
_PIECES_PER_THREAD = 4
"""Images take different times: each thread gets so many pieces of a batch, one after the other."""


class Cut(Protocol):
    """What is cut out of images that keep their own sizes."""

    @property
    def crop(self) -> int:
        """Side of the square."""
        ...

    def place(self, height: int, width: int, draws: np.ndarray | None) -> tuple[int, int]:
        """First line and first column, for an image of this size and its random numbers, uint32 [4]."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Places:
    """Where the rows of a batch lie."""

    rows: np.ndarray
    """Numbers in the table, int64 [n]."""
    owners: list[int]
    """The shard of each row; of one number where all lie in that shard."""
    local: np.ndarray
    """Number of each row within its shard, int64 [n]."""
    draws: np.ndarray | None = None
    """Random numbers of each row, uint32 [n, 4]."""

    def each(self) -> Iterator[tuple[int, int]]:
        """Shard and number within it of each row."""
        owners = self.owners * len(self.local) if len(self.owners) == 1 else self.owners
        return zip(owners, self.local.tolist(), strict=True)


class ShardTable:
    """The rows of several shards as one table; files are memory-mapped when first touched.

    Rows are numbered through all shards, in their order. Safe for use by several threads, where the files lie in
    place; of files that are fetched one thread reads, and a few are open at a time.

    Args:
        files: how the shards' files are reached; a path: they lie in this directory, the manifest's.
        shards: the manifest's training or validation shards.
        columns: the manifest's columns.
        threads: how many decode images at a time, where shards hold them encoded.
        cuts: by column what is cut out of images that keep their own sizes; other columns are left alone.
    """

    def __init__(
        self,
        files: ShardFiles | Path,
        shards: Sequence[Shard],
        columns: Sequence[Column],
        *,
        threads: int = 1,
        cuts: Mapping[str, Cut] | None = None,
    ) -> None:
        self._files = InPlace(files) if isinstance(files, Path) else files
        self._shards = tuple(shards)
        self._columns = tuple(columns)
        self._cuts = {column.name: (cuts or {}).get(column.name) for column in self._columns if column.own_size}
        self._edges = [0, *accumulate(shard.rows for shard in self._shards)]
        self._starts = np.array(self._edges[:-1], np.int64)
        # in the order in which they were opened
        self._opened: dict[int, None] = {}
        # what `expect` has named last; None: nothing was
        self._expected: set[int] | None = None
        # by column and shard: values [rows, *shape] or images (Cells), and the memory of values
        self._stored: dict[str, list[Any]] = {column.name: [None] * len(self._shards) for column in self._columns}
        self._bytes: dict[str, list[Any]] = {column.name: [None] * len(self._shards) for column in self._columns}
        # A batch's labels lie in many shards, eight bytes in each: one array saves collecting them.
        self._scalars = {
            column.name: np.empty(len(self), column.dtype) for column in self._columns if not column.shape
        }
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._lock = Lock()

    def __len__(self) -> int:
        return self._edges[-1]

    def __enter__(self) -> "ShardTable":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def shard_rows(self) -> tuple[int, ...]:
        """Rows of each shard: what `Order` takes."""
        return tuple(shard.rows for shard in self._shards)

    @property
    def arrived(self) -> int:
        """Grows while bytes of fetched shards arrive; any thread may ask."""
        return self._files.arrived

    def close(self) -> None:
        """End the threads, and let go of fetched files; the table can still be read, which begins anew."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool:
            pool.shutdown()
        if self._files.fetched:
            self._shut(list(self._opened))
        self._files.close()

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Tell which rows, from and to (exclusive), are read from now on, in this order, until it is told again.

        Files that are fetched come in this order while others are read, and those of other rows are let go of. No
        ranges: nobody knows, and all are let go of.
        """
        if not self._files.fetched:
            return
        wanted = list(dict.fromkeys(index for low, high in ranges for index in self._between(low, high)))
        self._expected = set(wanted) or None
        self._shut([index for index in self._opened if index not in wanted])
        self._files.expect([self._shards[index] for index in wanted if index not in self._opened])

    def _between(self, start: int, stop: int) -> range:
        """The shards of rows `start` to `stop` (exclusive)."""
        if start >= stop:
            return range(0)
        first, last = (bisect_right(self._edges, row) - 1 for row in (start, stop - 1))
        return range(first, last + 1)

    def _shut(self, indices: Sequence[int]) -> None:
        """Let go of fetched shards; arrays that were given away keep what they show."""
        for index in indices:
            del self._opened[index]
            for name in self._stored:
                self._stored[name][index] = self._bytes[name][index] = None
            self._files.let_go(self._shards[index])

    def _shut_oldest(self, needed: Collection[int]) -> None:
        """Before fetched shards are opened: where nobody tells what is read next, a few stay."""
        if self._files.fetched and self._expected is None and not self._opened.keys() >= set(needed):
            others = [index for index in self._opened if index not in needed]
            self._shut(others[: max(0, len(others) + len(needed) - _FETCHED_OPEN)])

    def verify(self) -> None:
        """Open every shard and hold it against the manifest.

        Raises:
            DataError: a shard is missing, damaged, or has other rows or columns.
        """
        for index in range(len(self._shards)):
            self._open(index)

    def take(self, rows: np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Gather rows in the order asked.

        Args:
            rows: row numbers, int64 [n], repetitions allowed.
            draws: random numbers of each row, uint32 [n, 4], where images of several sizes are cut at random.

        Returns:
            For each column its name and values, `dtype` [n, *shape], C-contiguous, writable. Images are uint8
            pixels, whatever the shards hold.

        Raises:
            DataError: a shard is missing, damaged, or has other rows or columns.
            IndexError: a row number is outside the table.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if not len(rows):
            return self._empty()
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= len(self):
            raise IndexError(f"rows {low}..{high} of a table of {len(self)} rows")
        places = replace(self._find(rows, low, high), draws=draws)
        return {column.name: self._gather(column, places) for column in self._columns}

    def slice(self, start: int, stop: int, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Read consecutive rows `start` to `stop` (exclusive); `draws` as for `take`.

        Returns:
            For each column its name and values, `dtype` [stop - start, *shape], C-contiguous. Rows of a
            single shard are not copied, unless they are decoded: such arrays are read-only views of the file.

        Raises:
            DataError: a shard is missing, damaged, or has other rows or columns.
            IndexError: the range is outside the table.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start}..{stop} of a table of {len(self)} rows")
        if start == stop:
            return self._empty()
        pieces: list[dict[str, np.ndarray]] = []
        for index in self._between(start, stop):
            base = self._edges[index]
            low, high = max(start - base, 0), min(stop, self._edges[index + 1]) - base
            own = None if draws is None else draws[base + low - start : base + high - start]
            pieces.append(self._part(index, low, high, own))
        if len(pieces) == 1:
            return pieces[0]
        return {column.name: np.concatenate([piece[column.name] for piece in pieces]) for column in self._columns}

    def _empty(self) -> dict[str, np.ndarray]:
        return {column.name: np.empty((0, *self._shape(column)), column.dtype) for column in self._columns}

    def _shape(self, column: Column) -> tuple[int, ...]:
        """Of one row as it is read."""
        if not column.own_size:
            return column.shape
        cut = self._cuts[column.name]
        if cut is None or not cut.crop:
            raise DataError(
                f"column {column.name} holds images of several sizes, and nothing says which square is cut out of "
                "them: set data.crop, or crop_size in a Caffe net's data layers of both phases"
            )
        return (column.shape[0], cut.crop, cut.crop)

    def _find(self, rows: np.ndarray, low: int, high: int) -> _Places:
        """Look up rows, of which `low` is the smallest and `high` the largest, and open their shards."""
        first = bisect_right(self._edges, low) - 1
        # All in one shard: numpy gathers them in one call.
        if high < self._edges[first + 1]:
            self._shut_oldest([first])
            self._open(first)
            return _Places(rows=rows, owners=[first], local=rows - self._edges[first])
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        owners: list[int] = owner.tolist()
        # Once all are open, the set of owners need not be made for every batch.
        if len(self._opened) < len(self._shards):
            needed = set(owners)
            self._shut_oldest(needed)
            for index in needed:
                self._open(index)
        return _Places(rows=rows, owners=owners, local=rows - self._starts[owner])

    def _part(self, index: int, start: int, stop: int, draws: np.ndarray | None) -> dict[str, np.ndarray]:
        """Rows `start` to `stop` (exclusive) of one shard."""
        self._shut_oldest([index])
        self._open(index)
        parts: dict[str, np.ndarray] = {}
        for column in self._columns:
            if column.image:
                local = np.arange(start, stop)
                places = _Places(rows=local + self._edges[index], owners=[index], local=local, draws=draws)
                parts[column.name] = self._gather(column, places)
            else:
                parts[column.name] = self._stored[column.name][index][start:stop]
        return parts

    def _gather(self, column: Column, places: _Places) -> np.ndarray:
        name, local = column.name, places.local
        if not column.shape:
            return self._scalars[name].take(places.rows)
        result = np.empty((len(local), *self._shape(column)), column.dtype)
        if column.image:
            self._decode(result, places, column=column, form=column.image)
        elif len(places.owners) == 1:
            # "clip" writes straight into `out`; the range was checked before
            self._stored[name][places.owners[0]].take(local, 0, result, "clip")
        elif column.row_bytes < _SMALL_ROW_BYTES:
            return self._join(column, places)
        else:
            stored = self._stored[name]
            for place, (owner, row) in enumerate(places.each()):
                result[place] = stored[owner][row]
        return result

    def _join(self, column: Column, places: _Places) -> np.ndarray:
        """Small rows of several shards: one call copies all of them."""
        stored = self._bytes[column.name]
        size, first = column.row_bytes, places.local * column.row_bytes
        ranges = zip(places.owners, first.tolist(), (first + size).tolist(), strict=True)
        # A bytearray, since numpy gives a read-only array over bytes, and `take` promises a writable one.
        joined = bytearray().join([stored[owner][low:high] for owner, low, high in ranges])
        return np.frombuffer(joined, column.dtype).reshape(len(first), *column.shape)

    def _decode(self, result: np.ndarray, places: _Places, *, column: Column, form: ImageForm) -> None:
        # Imported here: of tables of pixels nobody needs what decodes images.
        from sparknet.data.rows.image_codec import decode_into
        from sparknet.data.rows.own_size import planes_of

        name, cut, draws = column.name, self._cuts.get(column.name), places.draws
        wanted = list(enumerate(places.each()))

        def read(place: int, cell: memoryview) -> None:
            if cut is None:
                return decode_into(result[place], cell, form=form)
            planes = planes_of(cell, form=form, channels=column.shape[0])
            y, x = cut.place(planes.shape[1], planes.shape[2], None if draws is None else draws[place])
            result[place] = planes[:, y : y + cut.crop, x : x + cut.crop]

        def work(start: int, stop: int) -> None:
            for place, (owner, row) in wanted[start:stop]:
                try:
                    read(place, self._stored[name][owner][row])
                except BadImage as error:
                    raise DataError(
                        f"{self._files.where}/{self._shards[owner].path}: row {row} was an image when it was "
                        f"written and is damaged now: {error}; {_remedy(self._files.where)}"
                    ) from error

        pieces = min(len(wanted), _PIECES_PER_THREAD * self._threads)
        if self._threads == 1 or pieces == 1:
            return work(0, len(wanted))
        edges = [len(wanted) * piece // pieces for piece in range(pieces + 1)]
        # `list` raises what a thread raised.
        list(self._decoders().map(work, edges[:-1], edges[1:]))

    def _decoders(self) -> ThreadPoolExecutor:
        with self._lock:
            # Made when first needed: a table of pixels has no threads, and threads do not survive a fork.
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="sparknet-decode")
            return self._pool

    def _open(self, index: int) -> None:
        """Map a shard into memory if it is not yet."""
        # Two threads may open one shard at the same time: both map the same file and store equal views.
        if index in self._opened:
            return
        batch = _read(self._files, self._shards[index], self._columns)
        for place, column in enumerate(self._columns):
            name, array = column.name, batch.column(place)
            if column.image:
                self._stored[name][index] = Cells.of(array)
                continue
            values = self._stored[name][index] = column.to_numpy(array)
            self._bytes[name][index] = values.reshape(-1).view(np.uint8).data
            if not column.shape:
                self._scalars[name][self._edges[index] : self._edges[index + 1]] = values
        self._opened[index] = None  # last: another thread may look


def _read(files: ShardFiles, shard: Shard, columns: Sequence[Column]) -> Any:
    remedy, path = _remedy(files.where), files.path(shard)
    try:
        # closing the source frees its file handle; the mapping lives on with the batch
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            schema = reader.schema
    except FileNotFoundError:
        raise DataError(f"{path}: the shard is missing; restore it or {remedy}") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: the shard is damaged: {error}; {remedy}") from error
    expected = schema_of(columns)
    # Held against the manifest, since numpy will read whatever bytes there are in the type that it is told.
    if not schema.equals(expected):
        raise DataError(
            f"{path}: the shard's columns are {_one_line(schema)}; the manifest says {_one_line(expected)}: "
            f"{remedy}"
        )
    # One batch: only then is a column one piece of memory.
    found = [batch.num_rows for batch in batches]
    if found != [shard.rows]:
        raise DataError(f"{path}: batches of {found} rows; the manifest says one of {shard.rows}: {remedy}")
    return batches[0]


def _remedy(directory: str) -> str:
    return f"delete {directory} to prepare the data again"


def _one_line(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
