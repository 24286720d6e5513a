"""Writing shards: rows go into files of a given size, and are counted on the way."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import Column, batch_of
from sparknet.data.rows.ragged import Cells
from sparknet.data.shards.statistics import Statistics
from sparknet.whole_files import whole_file

__all__ = ["ShardWriter", "WrittenShard"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenShard:
    """One file that a `ShardWriter` has finished."""

    name: str
    """File name within the writer's directory."""
    statistics: Statistics
    """Of the file's rows."""
    bytes: int
    """Of the file."""
    sha256: str
    """Of the file, 64 hexadecimal digits."""


class ShardWriter:
    """Writes rows into `<prefix>-0000.arrow`, `<prefix>-0001.arrow`, … and counts them on the way.

    A file gets its name only when it is complete and on disk. Memory: one shard.

    Args:
        directory: an existing directory.
        prefix: begins the file names; unique within the directory.
        columns: of the rows, at least one.
        shard_bytes: a file is closed when another row would exceed this; it holds one row at least.
        deliver: is given each file when it is whole, and may move it away.
    """

    def __init__(
        self,
        directory: Path,
        *,
        prefix: str,
        columns: Sequence[Column],
        shard_bytes: int,
        deliver: Callable[[Path], None] | None = None,
    ) -> None:
        self._directory = directory
        self._deliver = deliver
        self._prefix = prefix
        self._columns = tuple(columns)
        self._shard_bytes = shard_bytes
        fixed_bytes = sum(column.row_bytes for column in self._columns if not column.image)
        capacity = max(1, shard_bytes // max(1, fixed_bytes))
        self._buffers: dict[str, _Buffer] = {
            column.name: _EncodedRows(shard_bytes) if column.image else _FixedRows(column, capacity)
            for column in self._columns
        }
        self._filled_rows = 0
        self._filled_bytes = 0
        self._nothing = Statistics.none(self._columns)
        self._counted = self._nothing
        self.written: list[WrittenShard] = []

    def append(self, values: Mapping[str, np.ndarray], files: Mapping[str, Cells] | None = None) -> None:
        """Add rows.

        Args:
            values: by column its dtype [n, *shape]; classes from 0.
            files: by column the files that the values were decoded from, for those that hold encoded images.

        Raises:
            OSError: a file cannot be written.
        """
        stored: dict[str, Any] = {**values, **(files or {})}
        encoded = {column.name for column in self._columns if column.image}
        assert encoded == set(files or {}), "a column holds pixels or files"
        sizes = sum(self._buffers[name].row_bytes(stored[name]) for name in self._buffers)
        ends = np.cumsum(sizes)
        at, count = 0, len(ends)
        while at < count:
            before = int(ends[at - 1]) if at else 0
            # How far the rows at hand reach before this file is full: no loop over single rows.
            room = before + self._shard_bytes - self._filled_bytes
            stop = int(np.searchsorted(ends, room, side="right"))
            # The next row does not fit; in an empty file it would be taken all the same, or a large row had no
            # place.
            if stop <= at and self._filled_rows:
                self._finish_file()
                continue
            piece = slice(at, max(stop, at + 1))
            for name, buffer in self._buffers.items():
                buffer.add(stored[name], piece)
            self._filled_rows += piece.stop - piece.start
            self._filled_bytes += int(ends[piece.stop - 1]) - before
            # While the pixels are in the cache and decoded: a second pass over a shard would read all of it again.
            part = {name: rows[piece] for name, rows in values.items()}
            self._counted += Statistics.of(self._columns, part)
            at = piece.stop

    def close(self) -> list[WrittenShard]:
        """Finish the open file, if it has rows, and list all files.

        Raises:
            OSError: a file cannot be written.
        """
        if self._filled_rows:
            self._finish_file()
        return self.written

    def _finish_file(self) -> None:
        name = f"{self._prefix}-{len(self.written):04d}.arrow"
        # One batch for a file, as `ShardTable` needs it.
        batch = batch_of(self._columns, {key: buffer.filled() for key, buffer in self._buffers.items()})
        # Under its name only when whole: a task that is killed leaves drafts, which nobody takes for shards.
        written = _write(self._directory / name, batch)
        if self._deliver is not None:
            self._deliver(self._directory / name)
        digest = written.digest.hexdigest()
        self.written.append(WrittenShard(name=name, statistics=self._counted, bytes=written.bytes, sha256=digest))
        for buffer in self._buffers.values():
            buffer.clear()
        self._filled_rows, self._filled_bytes, self._counted = 0, 0, self._nothing


class _Buffer(Protocol):
    """One column of the open file's rows."""

    def row_bytes(self, rows: Any) -> np.ndarray:
        """Bytes that each row takes in the file, int64 [n]."""
        ...

    def add(self, rows: Any, piece: slice) -> None:
        """Copy some of the rows."""
        ...

    def filled(self) -> np.ndarray | Cells:
        """All rows; valid until the next call."""
        ...

    def clear(self) -> None:
        """Forget all rows."""
        ...


class _FixedRows:
    """The open file's rows of one size."""

    def __init__(self, column: Column, capacity: int) -> None:
        self._column = column
        self._capacity = capacity
        self._rows = np.empty((0, *column.shape), column.dtype)
        self._filled = 0

    def row_bytes(self, rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows), self._column.row_bytes, np.int64)

    def add(self, rows: np.ndarray, piece: slice) -> None:
        if not len(self._rows):
            # np.empty reserves; memory is taken only as rows arrive
            self._rows = np.empty((self._capacity, *self._column.shape), self._column.dtype)
        stop = self._filled + piece.stop - piece.start
        self._rows[self._filled : stop] = rows[piece]
        self._filled = stop

    def filled(self) -> np.ndarray:
        return self._rows[: self._filled]

    def clear(self) -> None:
        self._filled = 0


class _EncodedRows:
    """The open file's rows of any size."""

    def __init__(self, shard_bytes: int) -> None:
        self._shard_bytes = shard_bytes
        self._data = np.empty(0, np.uint8)
        self._sizes: list[np.ndarray] = []
        self._filled = 0

    def row_bytes(self, rows: Cells) -> np.ndarray:
        return rows.sizes

    def add(self, rows: Cells, piece: slice) -> None:
        part = rows.slice(piece.start, piece.stop)
        data = part.data[part.edges[0] : part.edges[-1]]
        stop = self._filled + len(data)
        if stop > len(self._data):
            # only a row larger than a shard, which is alone in its file, needs more than a shard's bytes
            self._data = np.empty(max(self._shard_bytes, stop), np.uint8)
        self._data[self._filled : stop] = data
        self._filled = stop
        self._sizes.append(part.sizes)

    def filled(self) -> Cells:
        edges = np.concatenate([np.zeros(1, np.int64), *self._sizes])
        return Cells(data=self._data[: self._filled], edges=np.cumsum(edges))

    def clear(self) -> None:
        self._sizes, self._filled = [], 0


class _Hashed(io.RawIOBase):
    """Passes bytes on to a file, and knows their number and their SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.digest = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.bytes


def _write(path: Path, batch: pa.RecordBatch) -> _Hashed:
    with whole_file(path) as draft, draft.open("wb") as file:
        # While it is written: a second pass would read all of it again.
        hashed = _Hashed(file)
        with pa.ipc.new_file(hashed, batch.schema) as sink:
            sink.write_batch(batch)
    return hashed
