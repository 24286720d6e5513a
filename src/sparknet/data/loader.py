"""A worker's stream of batches: rows in their order, preprocessed, a few ahead of the training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event, Thread
from types import TracebackType

import numpy as np

from sparknet.data.order import Cursor, Order
from sparknet.data.shards import ShardTable
from sparknet.errors import DataError, SparkNetError

__all__ = ["Batch", "Loader"]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Batch:
    """Rows for one training step."""

    images: np.ndarray
    """What the preprocessing made of the input column: float32 [batch_size, *shape]."""
    labels: np.ndarray
    """int64 [batch_size]."""
    cursor: Cursor
    """Where the next batch starts: to be stored with the weights that have seen this batch."""


class Loader(Iterator[Batch]):
    """Delivers full batches without end, going from one epoch into the next within a batch.

    The batches depend on table, order, batch size and cursor only, never on timing. One thread works
    `prefetch` batches ahead; `close`, or leaving the `with` block, ends it.

    Args:
        table: the training rows.
        order: which of them, in which order.
        batch_size: rows of each batch.
        cursor: where to start.
        image: name of the input column.
        label: name of the label column.
        preprocess: turns the input column's values [n, *shape] and each row's own random numbers,
            uint64 [n, 4], into the net's float32 [n, *shape].
        prefetch: batches made ahead, at least 1.

    Raises:
        DataError: the slot has no rows, the cursor lies beyond them, or a size is less than 1.
    """

    def __init__(  # noqa: PLR0913 - all but two are named by the caller
        self,
        table: ShardTable,
        order: Order,
        *,
        batch_size: int,
        cursor: Cursor,
        image: str,
        label: str,
        preprocess: Callable[[np.ndarray, np.ndarray], np.ndarray],
        prefetch: int = 4,
    ) -> None:
        _check(table, order, cursor)
        if batch_size < 1 or prefetch < 1:
            raise DataError(f"batch size {batch_size}, prefetch {prefetch}: both must be at least 1")
        self._table = table
        self._order = order
        self._batch_size = batch_size
        self._cursor = cursor
        self._image = image
        self._label = label
        self._preprocess = preprocess
        self._queue: Queue[Batch | _Failure | None] = Queue(prefetch)
        self._stop = Event()
        self._failure: _Failure | None = None
        self._thread = Thread(target=self._work, name="sparknet-loader", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataError: a shard is missing or damaged.
            SparkNetError: whatever else stopped the thread, with its cause.
            ValueError: the loader was closed.
        """
        if self._failure is None:
            item = None if self._stop.is_set() else self._queue.get()
            if isinstance(item, Batch):
                return item
            if item is None:
                raise ValueError("next batch of a closed loader; make another one from the last cursor")
            self._failure = item
        raise self._failure.error from self._failure.error.__cause__

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
        self._stop.set()
        # The thread may be waiting for room. It looks at the event before each batch, so after this it
        # puts one item at most, for which there is room now.
        self._drain()
        self._thread.join()
        self._drain()
        self._queue.put(None)  # for a consumer that waits in another thread

    def _drain(self) -> None:
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            return

    def _work(self) -> None:
        try:
            cursor = self._cursor
            while not self._stop.is_set():
                batch = self._make(cursor)
                cursor = batch.cursor
                self._queue.put(batch)
        except BaseException as error:  # the consumer raises it: this thread has nobody to tell
            self._queue.put(_Failure(_described(error)))

    def _make(self, cursor: Cursor) -> Batch:
        rows, draws = self._rows(cursor)
        columns = self._table.take(rows)
        return Batch(
            images=self._preprocess(columns[self._image], draws),
            labels=columns[self._label],
            cursor=cursor.advance(self._batch_size, rows_per_epoch=len(self._order)),
        )

    def _rows(self, cursor: Cursor) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the batch's rows, int64 [batch_size], and their random draws."""
        epoch, at, missing = cursor.epoch, cursor.position, self._batch_size
        rows: list[np.ndarray] = []
        draws: list[np.ndarray] = []
        while missing:
            stop = min(at + missing, len(self._order))
            rows.append(self._order.rows(epoch, at, stop))
            draws.append(self._order.draws(epoch, at, stop))
            missing -= stop - at
            epoch, at = epoch + 1, 0
        return np.concatenate(rows), np.concatenate(draws)


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


def _described(error: BaseException) -> BaseException:
    if isinstance(error, SparkNetError):
        return error
    described = DataError(f"the loader stopped: {type(error).__name__}: {error}; correct the cause and resume")
    described.__cause__ = error
    return described


def _check(table: ShardTable, order: Order, cursor: Cursor) -> None:
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
