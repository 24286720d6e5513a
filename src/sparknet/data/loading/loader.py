"""A worker's stream of batches: rows in their order, preprocessed, a few ahead of the training step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Condition, Thread
from types import TracebackType
from typing import Protocol

import numpy as np

from sparknet.data.loading.sampling_order import Cursor, RowOrder
from sparknet.data.shards.prepared import RowTable
from sparknet.errors import DataError, SparkNetError

__all__ = ["Batch", "Loader", "Preprocess"]

_PREFETCH_BYTES = 256 << 20


class Preprocess(Protocol):
    """What turns stored rows into what the net sees; `Normalise` is one."""

    def __call__(self, images: np.ndarray, draws: np.ndarray, /, *, threads: int) -> np.ndarray:
        """Make new values of a column's, [n, *shape], and each row's own random numbers, uint32 [n, 4]."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Batch:
    """Rows for one training step."""

    columns: dict[str, np.ndarray]
    """By column its values [batch_size, *shape]: float32 of those that were preprocessed, of others what is stored
    (uint8, float32 or int64)."""
    cursor: Cursor
    """Where the next batch starts: to be stored with the weights that have seen this batch."""
    draws: np.ndarray | None = None
    """Random numbers of each row for a preprocessing that is still to come, uint32 [batch_size, 4]; else None."""

    @property
    def rows(self) -> int:
        """Rows in the batch."""
        return len(next(iter(self.columns.values())))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(values.nbytes for values in self.columns.values()) + (
            0 if self.draws is None else self.draws.nbytes
        )


class Loader(Iterator[Batch]):
    """Delivers full batches without end, going from one epoch into the next within a batch.

    The batches depend on table, order, batch size and cursor only, never on timing or `threads`. One thread works
    ahead; `close`, or leaving the `with` block, ends it. (Threads that decode are the table's.)

    Memory: at most `ahead` batches wait or are being made, where ahead = max(1, min(prefetch, prefetch_bytes /
    bytes of a batch)), and the stored rows of one batch are held while it is made. With a consumer that lets go of
    a batch when it has the next one, all that takes at most
    (ahead + 2) · batch_size · (bytes of a preprocessed row) + batch_size · (bytes of a stored row).

    Args:
        table: the training rows.
        order: which of them, in which order.
        batch_size: rows of each batch.
        cursor: where to start.
        preprocess: by column what turns its stored values into the net's; the draws of a row are the same for all
            of them, so that images of one size are cut and mirrored alike. None delivers every column as it is
            stored, with the draws for whoever preprocesses them elsewhere.
        threads: threads that preprocess the rows of a batch.
        prefetch: the most batches made ahead, at least 1.
        prefetch_bytes: the most bytes of batches made ahead; one batch is made ahead whatever its size.

    Raises:
        DataError: the slot has no rows, the cursor lies beyond them, or a size is less than 1.
    """

    def __init__(  # noqa: PLR0913 - all but two are named by the caller
        self,
        table: RowTable,
        order: RowOrder,
        *,
        batch_size: int,
        cursor: Cursor,
        preprocess: Mapping[str, Preprocess] | None,
        threads: int = 1,
        prefetch: int = 4,
        prefetch_bytes: int = _PREFETCH_BYTES,
    ) -> None:
        _check(table, order, cursor)
        if min(batch_size, threads, prefetch) < 1:
            raise DataError(
                f"batch size {batch_size}, threads {threads}, prefetch {prefetch}: all must be at least 1"
            )
        self._table = table
        self._order = order
        self._batch_size = batch_size
        self._preprocess = preprocess
        self._threads = threads
        self._prefetch_bytes = prefetch_bytes
        self._ahead = prefetch
        self._told: tuple[tuple[int, int], ...] | None = None
        self._ready: deque[Batch] = deque()
        self._failure: BaseException | None = None
        self._closed = False
        self._changed = Condition()  # guards the four above
        self._thread = Thread(target=self._work, args=(cursor,), name="sparknet-loader", daemon=True)
        self._thread.start()  # last: it reads what stands above

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataError: a shard is missing or damaged.
            SparkNetError: whatever else stopped the thread, with its cause.
            ValueError: the loader was closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._failure or self._closed)
            if self._closed:
                raise ValueError("next batch of a closed loader; make another one from the last cursor")
            if self._ready:  # what was made before a failure is delivered before it
                batch = self._ready.popleft()
                self._changed.notify_all()
                return batch
            assert self._failure is not None
            raise self._failure

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and wait for its end, one batch's time at most; may be called again."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def _work(self, cursor: Cursor) -> None:
        try:
            while self._has_room():
                batch = self._make(cursor)
                cursor = batch.cursor
                self._put(batch)
                del batch  # else it would be held here until the next one is made
        except BaseException as error:  # the consumer raises it: this thread has nobody to tell
            with self._changed:
                self._failure = _described(error)
                self._changed.notify_all()

    def _has_room(self) -> bool:
        """Wait until another batch may be made; False: no more are wanted."""
        # Before it is made and not after, so that no batch is held while it waits for room.
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._ahead)
            return not self._closed

    def _put(self, batch: Batch) -> None:
        with self._changed:
            if not self._closed:
                self._ready.append(batch)
            # all batches are of one size, which the first one tells
            self._ahead = max(1, min(self._ahead, self._prefetch_bytes // max(1, batch.nbytes)))
            self._changed.notify_all()

    def _make(self, cursor: Cursor) -> Batch:
        rows, draws = self._rows(cursor)
        columns = self._table.take(rows, draws)  # decodes images, by the table's threads
        after = cursor.advance(self._batch_size, rows_per_epoch=len(self._order))
        if self._preprocess is None:
            return Batch(columns=columns, cursor=after, draws=draws)
        for name, preprocess in self._preprocess.items():
            # Replaced one by one, so that stored rows are free as soon as the preprocessed ones are there.
            columns[name] = preprocess(columns[name], draws, threads=self._threads)
        return Batch(columns=columns, cursor=after)

    def _rows(self, cursor: Cursor) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the batch's rows, int64 [batch_size], and their random draws."""
        epoch, at, missing = cursor.epoch, cursor.position, self._batch_size
        ahead = self._order.ahead(epoch, at)
        if ahead != self._told:  # seldom: where shards are fetched, the next ones come while these are read
            self._table.expect(ahead)
            self._told = ahead
        rows: list[np.ndarray] = []
        draws: list[np.ndarray] = []
        # Around the end of an epoch, and more than once where a batch is larger than a worker's share.
        while missing:
            stop = min(at + missing, len(self._order))
            rows.append(self._order.rows(epoch, at, stop))
            draws.append(self._order.draws(epoch, rows[-1]))
            missing -= stop - at
            epoch, at = epoch + 1, 0
        return np.concatenate(rows), np.concatenate(draws)


def _described(error: BaseException) -> BaseException:
    if isinstance(error, SparkNetError):
        return error
    described = DataError(f"the loader stopped: {type(error).__name__}: {error}; correct the cause and resume")
    described.__cause__ = error
    return described


def _check(table: RowTable, order: RowOrder, cursor: Cursor) -> None:
    if not len(order):
        raise DataError(
            f"this worker has none of the {len(table)} training rows; every worker needs at least one: "
            "set run.workers to a smaller number"
        )
    if cursor.epoch < 0 or not 0 <= cursor.position <= len(order):
        raise DataError(
            f"the cursor is at epoch {cursor.epoch}, row {cursor.position}; this worker has {len(order)} rows "
            "an epoch: start at position 0 when the number of workers has changed"
        )
