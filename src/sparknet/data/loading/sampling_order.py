"""Which worker reads which row when: a pure function of seed, epoch, shard sizes and worker slot.

An epoch in three steps, after the scheme of MosaicML Streaming's `py1br` and tf.data's shuffle buffer:

1. The shards are cut into blocks of consecutive rows, and the epoch permutes all blocks.
2. The resulting sequence of rows is cut into one contiguous segment per slot; sizes differ by one at most.
3. Within its segment a slot shuffles windows of many blocks, each window by itself.

So every row is read exactly once an epoch whatever the number of slots; reading touches few places at a
time; and memory is the table of blocks plus a window, not the epoch.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Generic, Protocol, TypeVar

import numpy as np

from sparknet.data.loading.row_random import row_draws
from sparknet.errors import DataError

__all__ = ["Cursor", "Order", "Recent", "RowOrder"]

T = TypeVar("T")

_BLOCK_ROWS = 256
_WINDOW_BLOCKS = 64
_BLOCKS, _WINDOW = 1, 2  # set the streams of random numbers for the two shuffles apart


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """A place in a slot's endless sequence of rows."""

    epoch: int = 0
    """Passes completed before this one."""
    position: int = 0
    """Rows of this slot read in this pass."""
    rows: str = ""
    """Which rows they are, where not all workers read the same ones; empty: those of the run."""

    def advance(self, rows: int, *, rows_per_epoch: int) -> "Cursor":
        """The cursor `rows` rows later, for a slot with `rows_per_epoch` rows (at least one)."""
        epochs, position = divmod(self.position + rows, rows_per_epoch)
        return replace(self, epoch=self.epoch + epochs, position=position)

    def among(self, rows: str) -> "Cursor":
        """This place among these rows; where it is one among others, the beginning of the next pass."""
        if self.rows == rows:
            return self
        return Cursor(epoch=self.epoch + (self.position > 0), rows=rows)


class RowOrder(Protocol):
    """The rows of one slot, epoch by epoch: a pure function, safe for use by several threads."""

    def __len__(self) -> int:
        """Rows of this slot in each epoch."""
        ...

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Global numbers of this slot's rows `start` to `stop` (exclusive) in an epoch, int64."""
        ...

    def draws(self, epoch: int, rows: np.ndarray) -> np.ndarray:
        """Random numbers of rows in an epoch, uint32 [n, 4], for their global numbers, int64 [n]."""
        ...

    def ahead(self, epoch: int, position: int) -> tuple[tuple[int, int], ...]:
        """Ranges of global numbers, from and to (exclusive), that the next rows come from, nearest first."""
        ...


class Order:
    """The rows of one slot, epoch by epoch. Immutable, and safe for use by several threads.

    Each slot's epoch draws on at least 64 places of the table.

    Args:
        seed: at least 0; another seed is another order.
        shard_rows: rows of each shard; empty shards are allowed.
        slots: number of workers.
        slot: this worker, 0..slots-1.
        block_rows: the most consecutive rows that travel together.
        stream: numbers that set orders of one seed apart.

    Raises:
        DataError: an argument is out of its range.
    """

    def __init__(
        self,
        seed: int,
        shard_rows: Sequence[int],
        slots: int,
        slot: int,
        *,
        block_rows: int = _BLOCK_ROWS,
        stream: tuple[int, ...] = (),
    ) -> None:
        rows = np.asarray(shard_rows, dtype=np.int64).reshape(-1)
        _require(slots >= 1, f"slots is {slots}; an order needs at least one")
        _require(0 <= slot < slots, f"slot is {slot}; it must be 0 to {slots - 1} for {slots} slots")
        _require(block_rows >= 1, f"block_rows is {block_rows}; it must be at least 1")
        _require(seed >= 0, f"seed is {seed}; it must be at least 0")
        _require(bool((rows >= 0).all()), f"shard_rows is {rows.tolist()}; a shard has at least 0 rows")
        total = int(rows.sum())
        self._seed = seed
        self._slot = slot
        self._stream = stream
        self._total = total
        # Rounded by the same formula at both ends: slots meet without gap or overlap, whatever their number.
        self._low, self._high = (total * edge // slots for edge in (slot, slot + 1))
        # Small tables get smaller blocks: rows sorted by class must reach every slot mixed.
        self._block_rows = max(1, min(block_rows, total // (_WINDOW_BLOCKS * slots)))
        self._window_rows = _WINDOW_BLOCKS * block_rows
        self._starts, self._sizes = _blocks(rows, self._block_rows)
        # Two of each: a batch may reach from one into the next.
        self._sequences: Recent[int, _Sequence] = Recent(2)
        self._windows: Recent[tuple[int, int], np.ndarray] = Recent(2)

    def __len__(self) -> int:
        """Rows of this slot in each epoch."""
        return self._high - self._low

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Global numbers of this slot's rows `start` to `stop` (exclusive) in an epoch, int64.

        Raises:
            IndexError: the range is outside 0..len.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start}..{stop} of a slot with {len(self)} rows an epoch")
        result = np.empty(stop - start, np.int64)
        at = start
        while at < stop:
            window, offset = divmod(at, self._window_rows)
            rows = self._window(epoch, window)[offset : offset + stop - at]
            result[at - start : at - start + len(rows)] = rows
            at += len(rows)
        return result

    def draws(self, epoch: int, rows: np.ndarray) -> np.ndarray:
        """Random numbers of rows in an epoch, uint32 [n, 4], for their global numbers, int64 [n].

        They are those of the row, not of this slot: another number of workers draws the same.
        """
        return row_draws(self._seed, epoch, rows)

    def ahead(self, epoch: int, position: int) -> tuple[tuple[int, int], ...]:
        """Where the rows from here on come from: all over the table, at any place."""
        return ((0, self._total),)

    def _window(self, epoch: int, window: int) -> np.ndarray:
        def shuffled() -> np.ndarray:
            low = self._low + window * self._window_rows
            rows = self._sequence(epoch).rows(low, min(low + self._window_rows, self._high))
            # The slot is part of the key: else all slots would shuffle their windows alike.
            return self._random(_WINDOW, epoch, self._slot, window).permutation(rows)

        return self._windows.get((epoch, window), shuffled)

    def _sequence(self, epoch: int) -> "_Sequence":
        def permuted() -> _Sequence:
            # Of all shards together, and the same for every slot: that is how the slots divide the epoch.
            blocks = self._random(_BLOCKS, epoch).permutation(len(self._starts))
            return _Sequence(starts=self._starts[blocks], ends=np.cumsum(self._sizes[blocks]))

        return self._sequences.get(epoch, permuted)

    def _random(self, *key: int) -> np.random.Generator:
        # A generator for each use, none that is passed on: any epoch and window is made without those before.
        key = (*self._stream, *key)
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(self._seed, spawn_key=key)))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise DataError(message)


def _blocks(shard_rows: np.ndarray, block_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut every shard into blocks; gives the first row and the number of rows of each, int64 [blocks]."""
    counts = -(-shard_rows // block_rows)
    shard = np.repeat(np.arange(len(shard_rows)), counts)
    place = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.cumsum(shard_rows) - shard_rows
    sizes = np.minimum(block_rows, shard_rows[shard] - place * block_rows)
    return first[shard] + place * block_rows, sizes


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Sequence:
    """An epoch's blocks in their order."""

    starts: np.ndarray
    """First row of each block, int64 [blocks]."""
    ends: np.ndarray
    """Rows up to and with each block, int64 [blocks]."""

    def rows(self, low: int, high: int) -> np.ndarray:
        """Row numbers at the places `low` to `high` (exclusive) of the sequence, int64."""
        places = np.arange(low, high)
        # Only the blocks that these rows touch: an epoch may have millions.
        first, last = np.searchsorted(self.ends, [low, high - 1], side="right")
        ends = self.ends[first : last + 1]
        begins = np.concatenate([self.ends[first - 1 : first] if first else np.zeros(1, np.int64), ends[:-1]])
        spans = np.minimum(ends, high) - np.maximum(begins, low)
        return places + np.repeat(self.starts[first : last + 1] - begins, spans)


K = TypeVar("K")


class Recent(Generic[K, T]):
    """The last few results of a pure function; safe for use by several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[K, T] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K, make: Callable[[], T]) -> T:
        """The result for a key, made if it is not kept."""
        with self._lock:  # held while it is made: two threads would make the same
            if key not in self._kept:
                self._kept[key] = make()
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return self._kept[key]
