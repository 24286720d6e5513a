"""The loader: full batches, the same whatever the timing, resumable at any batch, and it ends."""

import threading

import numpy as np
import pytest

from formats import make_table
from sparknet.data import Cursor, Loader, Normalise, Order
from sparknet.errors import DataError

PLAIN = Normalise(mean=None, scale=1.0)


def loader(table, order, *, batch_size=8, cursor=None, preprocess=PLAIN, prefetch=4):
    return Loader(
        table,
        order,
        batch_size=batch_size,
        cursor=cursor or Cursor(),
        image="image",
        label="label",
        preprocess=preprocess,
        prefetch=prefetch,
    )


@pytest.fixture
def table(tmp_path):
    return make_table(tmp_path, [13, 0, 20, 4])


def take(source, count):
    return [next(source) for _ in range(count)]


def endless(order, images, labels, rows):
    """The first `rows` rows that the order gives, epoch after epoch."""
    epochs = -(-rows // len(order))
    wanted = np.concatenate([order.rows(epoch, 0, len(order)) for epoch in range(epochs)])[:rows]
    return images[wanted], labels[wanted]


@pytest.mark.parametrize("batch_size", [1, 8, 18, 50])
def test_batches_are_the_orders_rows_across_epochs(table, batch_size):
    rows, images, labels = table
    order = Order(5, rows.shard_rows, 2, 0)
    with loader(rows, order, batch_size=batch_size) as source:
        batches = take(source, 7)
    expected = endless(order, images, labels, 7 * batch_size)
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in batches]), expected[0])
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches]), expected[1])
    for number, batch in enumerate(batches, 1):
        assert batch.images.shape == (batch_size, 2, 3)
        assert batch.images.dtype == np.float32
        assert batch.labels.dtype == np.int64
        assert batch.labels.flags.writeable
        done = batch.cursor.epoch * len(order) + batch.cursor.position
        assert done == number * batch_size


def test_resuming_from_any_cursor_gives_the_rest(table):
    rows = table[0]
    order = Order(5, rows.shard_rows, 3, 1)
    with loader(rows, order) as source:
        batches = take(source, 9)
    for at in range(8):
        with loader(rows, order, cursor=batches[at].cursor, prefetch=1) as source:
            again = next(source)
        np.testing.assert_array_equal(again.images, batches[at + 1].images)
        np.testing.assert_array_equal(again.labels, batches[at + 1].labels)
        assert again.cursor == batches[at + 1].cursor


def test_a_cursor_at_the_end_of_an_epoch_starts_the_next(table):
    rows = table[0]
    order = Order(5, rows.shard_rows, 1, 0)
    with (
        loader(rows, order, cursor=Cursor(epoch=0, position=37)) as end,
        loader(rows, order, cursor=Cursor(epoch=1, position=0)) as start,
    ):
        first, second = next(end), next(start)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.cursor == second.cursor


def test_timing_does_not_matter(table):
    rows = table[0]
    order = Order(5, rows.shard_rows, 2, 0)
    turn = threading.Semaphore(0)

    def held_up(images, draws):
        turn.acquire()
        return PLAIN(images, draws)

    with loader(rows, order) as free, loader(rows, order, preprocess=held_up, prefetch=1) as slow:
        for _ in range(6):
            turn.release()
            np.testing.assert_array_equal(next(free).images, next(slow).images)
        turn.release(2)  # lets the thread come to the end of what it is making


def test_works_ahead_by_prefetch_and_no_further(table):
    rows = table[0]
    made = threading.Semaphore(0)
    count = []

    def counted(images, draws):
        count.append(len(images))
        made.release()
        return PLAIN(images, draws)

    with loader(rows, Order(0, rows.shard_rows, 1, 0), preprocess=counted, prefetch=2) as source:
        for _ in range(3):  # two in the queue and one that waits for room
            assert made.acquire(timeout=20)
        assert not made.acquire(timeout=0.2)
        next(source)
        assert made.acquire(timeout=20)
    assert len(count) == 4


def test_close_ends_the_thread_and_later_use_is_refused(table):
    rows = table[0]
    source = loader(rows, Order(0, rows.shard_rows, 1, 0), prefetch=1)
    next(source)
    source.close()
    source.close()
    assert not source._thread.is_alive()
    with pytest.raises(ValueError, match="closed loader; make another one"):
        next(source)


def test_close_wakes_a_waiting_consumer(table):
    rows = table[0]
    entered, go = threading.Event(), threading.Event()

    def stuck(images, draws):
        entered.set()
        go.wait()
        return PLAIN(images, draws)

    source = loader(rows, Order(0, rows.shard_rows, 1, 0), preprocess=stuck)
    outcome = []

    def consume():
        try:
            while True:
                outcome.append(next(source))
        except ValueError as error:
            outcome.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert entered.wait(20)
    closer = threading.Thread(target=source.close)
    closer.start()
    assert source._stop.wait(20)
    go.set()
    closer.join(20)
    consumer.join(20)
    assert not consumer.is_alive()
    assert isinstance(outcome[-1], ValueError)


def test_an_error_reaches_the_consumer_with_its_cause_each_time(table):
    rows = table[0]

    def broken(images, draws):
        raise ZeroDivisionError("by zero")

    with loader(rows, Order(0, rows.shard_rows, 1, 0), preprocess=broken) as source:
        for _ in range(2):
            with pytest.raises(DataError, match="loader stopped: ZeroDivisionError: by zero") as raised:
                next(source)
            assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_batches_before_an_error_are_delivered(table):
    rows = table[0]
    calls = []

    def third_fails(images, draws):
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError
        return PLAIN(images, draws)

    with loader(rows, Order(0, rows.shard_rows, 1, 0), preprocess=third_fails) as source:
        take(source, 2)
        with pytest.raises(DataError, match="ZeroDivisionError"):
            next(source)


def test_a_missing_shard_reaches_the_consumer_as_it_is(table, tmp_path):
    rows = table[0]
    for file in tmp_path.glob("s2*"):
        file.unlink()
    with (
        loader(rows, Order(0, rows.shard_rows, 1, 0), batch_size=37) as source,
        pytest.raises(DataError, match=r"^.*s2-0000.arrow: the shard is missing"),
    ):
        next(source)


def test_refused_at_construction(table):
    rows = table[0]
    with pytest.raises(DataError, match=r"none of the 37 training rows; .*set run.workers to a smaller"):
        loader(rows, Order(0, [1], 2, 0))
    order = Order(0, rows.shard_rows, 1, 0)
    for cursor in (Cursor(epoch=0, position=38), Cursor(epoch=-1), Cursor(position=-1)):
        with pytest.raises(DataError, match=r"the cursor is at epoch .*this worker has 37 rows an epoch"):
            loader(rows, order, cursor=cursor)
    for sizes in ({"batch_size": 0}, {"prefetch": 0}):
        with pytest.raises(DataError, match="both must be at least 1"):
            loader(rows, order, **sizes)
