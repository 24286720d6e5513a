"""Shards: immutable Arrow files of rows, written once, then memory-mapped by every worker.

A shard is an uncompressed Arrow IPC file with exactly one record batch, so that each column is one
contiguous piece of the file: numpy reads it in place.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sparknet.data.columns import Column, batch_of, schema_of
from sparknet.data.statistics import Statistics
from sparknet.errors import DataError

__all__ = ["Shard", "ShardTable", "ShardWriter", "WrittenShard"]

_GATHER_BYTES = 1 << 21  # rows of several shards are gathered in pieces that stay in the cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of rows, as the manifest names it."""

    path: str
    """Relative to the manifest's directory."""
    rows: int
    """Rows in the file."""
    reader: Literal["arrow"] = "arrow"
    """What reads it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenShard:
    """One file that a `ShardWriter` has finished."""

    name: str
    """File name within the writer's directory."""
    statistics: Statistics
    """Of the file's rows."""


class ShardWriter:
    """Writes rows into `<prefix>-0000.arrow`, `<prefix>-0001.arrow`, … and counts them on the way.

    A file gets its name only when it is complete and on disk. Memory: one shard.

    Args:
        directory: an existing directory.
        prefix: begins the file names; unique within the directory.
        columns: the input and the label, in this order.
        shard_bytes: a file is closed when another row would exceed this; it holds one row at least.
    """

    def __init__(self, directory: Path, *, prefix: str, columns: tuple[Column, Column], shard_bytes: int) -> None:
        self._directory = directory
        self._prefix = prefix
        self._columns = columns
        self._capacity = max(1, shard_bytes // sum(column.row_bytes for column in columns))
        self._buffers: dict[str, np.ndarray] = {}
        self._filled = 0
        self._parts: list[Statistics] = []
        self.written: list[WrittenShard] = []

    def append(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        """Add rows: `inputs` of the input column's dtype [n, *shape], `labels` int64 [n], from 0.

        Raises:
            OSError: a file cannot be written.
        """
        at = 0
        while at < len(labels):
            piece = slice(at, at + min(len(labels) - at, self._capacity - self._filled))
            self._keep(inputs[piece], labels[piece])
            at = piece.stop
            if self._filled == self._capacity:
                self._finish_file()

    def close(self) -> list[WrittenShard]:
        """Finish the open file, if it has rows, and list all files.

        Raises:
            OSError: a file cannot be written.
        """
        if self._filled:
            self._finish_file()
        return self.written

    def _keep(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        if not self._buffers:
            # np.empty reserves; memory is taken only as rows arrive
            self._buffers = {
                column.name: np.empty((self._capacity, *column.shape), column.dtype) for column in self._columns
            }
        rows = slice(self._filled, self._filled + len(labels))
        for column, values in zip(self._columns, (inputs, labels), strict=True):
            self._buffers[column.name][rows] = values
        self._filled = rows.stop
        self._parts.append(Statistics.of(inputs, labels))

    def _finish_file(self) -> None:
        name = f"{self._prefix}-{len(self.written):04d}.arrow"
        batch = batch_of(self._columns, {key: values[: self._filled] for key, values in self._buffers.items()})
        _write_atomically(self._directory / name, batch)
        statistics = Statistics.merged(self._parts, shape=self._columns[0].shape)
        self.written.append(WrittenShard(name=name, statistics=statistics))
        self._filled, self._parts = 0, []


def _write_atomically(path: Path, batch: pa.RecordBatch) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            with pa.ipc.new_file(file, batch.schema) as sink:
                sink.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class ShardTable:
    """The rows of several shards as one table; files are memory-mapped when first touched.

    Rows are numbered through all shards, in their order. Safe for use by several threads.

    Args:
        directory: where the shards' paths start: the manifest's directory.
        shards: the manifest's training or validation shards.
        columns: the manifest's columns.
    """

    def __init__(self, directory: Path, shards: Sequence[Shard], columns: Sequence[Column]) -> None:
        self._directory = Path(directory)
        self._shards = tuple(shards)
        self._columns = tuple(columns)
        self._ends = np.cumsum([shard.rows for shard in self._shards], dtype=np.int64)
        self._starts = self._ends - [shard.rows for shard in self._shards]
        row_bytes = sum(column.row_bytes for column in self._columns)
        self._gather_rows = max(1, _GATHER_BYTES // row_bytes)
        self._open: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def shard_rows(self) -> tuple[int, ...]:
        """Rows of each shard: what `Order` takes."""
        return tuple(shard.rows for shard in self._shards)

    def verify(self) -> None:
        """Open every shard and hold it against the manifest.

        Raises:
            DataError: a shard is missing, damaged, or has other rows or columns.
        """
        for index in range(len(self._shards)):
            self._arrays(index)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Gather rows in the order asked.

        Args:
            rows: row numbers, int64 [n], repetitions allowed.

        Returns:
            For each column its name and values, `dtype` [n, *shape], C-contiguous, writable.

        Raises:
            DataError: a shard is missing, damaged, or has other rows or columns.
            IndexError: a row number is outside the table.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a table of {len(self)} rows")
        result = self._empty(len(rows))
        owner = np.searchsorted(self._ends, rows, side="right")
        for at in range(0, len(rows), self._gather_rows):
            piece = slice(at, at + self._gather_rows)
            self._gather(rows[piece], owner[piece], {name: part[piece] for name, part in result.items()})
        return result

    def slice(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Read consecutive rows `start` to `stop` (exclusive).

        Returns:
            For each column its name and values, `dtype` [stop - start, *shape], C-contiguous. Rows of a
            single shard are not copied: such arrays are read-only views of the file.

        Raises:
            DataError: a shard is missing, damaged, or has other rows or columns.
            IndexError: the range is outside the table.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start}..{stop} of a table of {len(self)} rows")
        if start == stop:
            return self._empty(0)
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
        if first == last:
            base = int(self._starts[first])
            return {name: values[start - base : stop - base] for name, values in self._arrays(first).items()}
        result = self._empty(stop - start)
        for index in range(first, last + 1):
            base = int(self._starts[index])
            low, high = max(start, base), min(stop, int(self._ends[index]))
            for name, values in self._arrays(index).items():
                result[name][low - start : high - start] = values[low - base : high - base]
        return result

    def _gather(self, rows: np.ndarray, owner: np.ndarray, result: dict[str, np.ndarray]) -> None:
        """Fill `result` with `rows`, which lie in the shards `owner`: shard by shard, then put in order."""
        order = np.argsort(owner, kind="stable")
        owner = owner[order]
        local = rows[order] - self._starts[owner]
        edges = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(rows)]
        in_order = len(edges) == 2
        target = result if in_order else self._empty(len(rows))
        for low, high in itertools.pairwise(edges):
            for name, values in self._arrays(int(owner[low])).items():
                # "clip" writes straight into `out`; the range was checked before
                values.take(local[low:high], 0, target[name][low:high], "clip")
        if not in_order:
            places = np.empty_like(order)
            places[order] = np.arange(len(order))
            for name, values in target.items():
                values.take(places, 0, result[name], "clip")

    def _empty(self, rows: int) -> dict[str, np.ndarray]:
        return {column.name: np.empty((rows, *column.shape), column.dtype) for column in self._columns}

    def _arrays(self, index: int) -> dict[str, np.ndarray]:
        if index not in self._open:
            batch = self._read(self._shards[index])
            self._open[index] = {
                column.name: column.to_numpy(batch.column(place)) for place, column in enumerate(self._columns)
            }
        return self._open[index]

    def _read(self, shard: Shard) -> Any:
        path = self._directory / shard.path
        remedy = f"delete {self._directory} to prepare the data again"
        try:
            # closing the source frees its file handle; the mapping lives on with the batch
            with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
                batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
                schema = reader.schema
        except FileNotFoundError:
            raise DataError(f"{path}: the shard is missing; restore it or {remedy}") from None
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: the shard is damaged: {error}; {remedy}") from error
        expected = schema_of(self._columns)
        if not schema.equals(expected):
            raise DataError(
                f"{path}: the shard's columns are {_one_line(schema)}; the manifest says {_one_line(expected)}: "
                f"{remedy}"
            )
        found = [batch.num_rows for batch in batches]
        if found != [shard.rows]:
            raise DataError(f"{path}: batches of {found} rows; the manifest says one of {shard.rows}: {remedy}")
        return batches[0]


def _one_line(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
