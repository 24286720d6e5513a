"""An order for shards that a worker fetches: each epoch a slot reads its share of the shards, a few at a time.

Like `Order` a pure function of seed, epoch, shard sizes and slot, in other steps:

1. The epoch permutes whole shards.
2. The resulting sequence of rows is cut into one contiguous segment per slot; sizes differ by one at most.
3. A slot's segment is cut where shards meet into windows of a few shards. The rows of a window are dealt by an
   `Order` of its own: blocks permuted over the window, then shuffled.

So every row is read exactly once an epoch whatever the number of slots, and all slots together fetch about one copy
of the data. The price: rows are mixed with those of a few shards only, and not with all rows.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparknet.data.loading.row_random import row_draws
from sparknet.data.loading.sampling_order import Order, Recent

__all__ = ["ShardOrder"]

_WINDOW_SHARDS = 4
_SHARDS, _INSIDE = 3, 4  # set the streams of random numbers apart, from those of `Order` too


class ShardOrder:
    """The rows of one slot, epoch by epoch. Immutable, and safe for use by several threads.

    Args:
        seed: at least 0; another seed is another order.
        shard_rows: rows of each shard; empty shards are allowed.
        slots: number of workers.
        slot: this worker, 0..slots-1.
        window_shards: shards among which rows are mixed, at least 1.

    Raises:
        DataError: an argument is out of its range.
    """

    def __init__(
        self, seed: int, shard_rows: Sequence[int], slots: int, slot: int, *, window_shards: int = _WINDOW_SHARDS
    ) -> None:
        # The same arguments have the same limits, and slots get as many rows as there.
        self._length = len(Order(seed, shard_rows, slots, slot))
        self._rows = np.asarray(shard_rows, dtype=np.int64).reshape(-1)
        self._first = np.cumsum(self._rows) - self._rows
        total = int(self._rows.sum())
        self._low = total * slot // slots
        self._seed = seed
        self._slot = slot
        self._window_shards = window_shards
        self._epochs: Recent[int, list[_Window]] = Recent(2)
        # Two: a batch may reach from one into the next.
        self._orders: Recent[tuple[int, int], Order] = Recent(2)

    def __len__(self) -> int:
        """Rows of this slot in each epoch."""
        return self._length

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Global numbers of this slot's rows `start` to `stop` (exclusive) in an epoch, int64.

        Raises:
            IndexError: the range is outside 0..len.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start}..{stop} of a slot with {len(self)} rows an epoch")
        result = np.empty(stop - start, np.int64)
        windows, at = self._windows(epoch), start
        number = _window_of(windows, at)
        while at < stop:
            window = windows[number]
            until = min(stop, window.stop)
            inside = self._order(epoch, number, window).rows(0, at - window.start, until - window.start)
            result[at - start : until - start] = window.globally(inside)
            at, number = until, number + 1
        return result

    def draws(self, epoch: int, rows: np.ndarray) -> np.ndarray:
        """Random numbers of rows in an epoch, uint32 [n, 4], for their global numbers, int64 [n]; as of `Order`."""
        return row_draws(self._seed, epoch, rows)

    def ahead(self, epoch: int, position: int) -> tuple[tuple[int, int], ...]:
        """The row ranges of the window at `position` and of the next one, perhaps the next epoch's first."""
        windows = self._windows(epoch)
        if not windows:
            return ()
        at = _window_of(windows, position)
        following = windows[at + 1] if at + 1 < len(windows) else self._windows(epoch + 1)[0]
        return windows[at].ranges + following.ranges

    def _windows(self, epoch: int) -> "list[_Window]":
        return self._epochs.get(epoch, lambda: self._cut(epoch))

    def _cut(self, epoch: int) -> "list[_Window]":
        """The windows of this slot's segment of an epoch."""
        key = np.random.SeedSequence(self._seed, spawn_key=(_SHARDS, epoch))
        shards = np.random.Generator(np.random.Philox(key)).permutation(len(self._rows))
        ends = np.cumsum(self._rows[shards])
        low, high = self._low, self._low + self._length
        pieces: list[tuple[int, int]] = []
        for shard, end in zip(shards.tolist(), ends.tolist(), strict=True):
            begin = end - int(self._rows[shard])
            here, there = max(begin, low), min(end, high)
            if here < there:
                first = int(self._first[shard]) - begin
                pieces.append((first + here, first + there))
        windows: list[_Window] = []
        start = 0
        for at in range(0, len(pieces), self._window_shards):
            windows.append(_Window.of(start, pieces[at : at + self._window_shards]))
            start = windows[-1].stop
        return windows

    def _order(self, epoch: int, number: int, window: "_Window") -> Order:
        def made() -> Order:
            sizes = [high - low for low, high in window.ranges]
            return Order(self._seed, sizes, 1, 0, stream=(_INSIDE, epoch, self._slot, number))

        return self._orders.get((epoch, number), made)


def _window_of(windows: "Sequence[_Window]", row: int) -> int:
    """Number of the window with this row of the slot's; of one behind the last, the last."""
    return bisect_right(windows, row, key=lambda window: window.start) - 1


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Window:
    """Some of a slot's rows in an epoch, of shards that are open together."""

    start: int
    """Number of its first row among the slot's."""
    stop: int
    """One more than that of its last."""
    ranges: tuple[tuple[int, int], ...]
    """Global numbers of its rows, from and to (exclusive)."""
    firsts: np.ndarray
    """The first of each range, int64."""
    ends: np.ndarray
    """Rows up to and with each range, int64."""

    @classmethod
    def of(cls, start: int, ranges: list[tuple[int, int]]) -> "_Window":
        sizes = np.array([high - low for low, high in ranges], np.int64)
        firsts = np.array([low for low, _ in ranges], np.int64)
        stop = start + int(sizes.sum())
        return cls(start=start, stop=stop, ranges=tuple(ranges), firsts=firsts, ends=np.cumsum(sizes))

    def globally(self, rows: np.ndarray) -> np.ndarray:
        """Global numbers of rows that are numbered within this window."""
        place = np.searchsorted(self.ends, rows, side="right")
        before = self.ends[place] - np.diff(self.ends, prepend=0)[place]
        return self.firsts[place] + rows - before
