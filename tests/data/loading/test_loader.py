"""The loader: full batches, the same whatever the timing, resumable at any batch, and it ends."""

import threading
import tracemalloc

import numpy as np
import pytest

from formats import make_table
from sparknet.data.loading.loader import Loader
from sparknet.data.loading.row_random import row_draws
from sparknet.data.loading.sampling_order import Cursor, Order
from sparknet.data.loading.transform import Normalise
from sparknet.errors import DataError

PLAIN = Normalise(mean=None, scale=1.0)


def loader(table, order, *, batch_size=8, cursor=None, preprocess=PLAIN, **options):
    return Loader(
        table,
        order,
        batch_size=batch_size,
        cursor=cursor or Cursor(),
        preprocess=None if preprocess is None else {"image": preprocess},
        **options,
    )


class Watched:
    """A preprocessing that tells when a batch is being made."""

    def __init__(self):
        self.made, self.count = threading.Semaphore(0), 0

    def __call__(self, images, draws, *, threads):
        self.count += 1
        self.made.release()
        return PLAIN(images, draws, threads=threads)


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
    np.testing.assert_array_equal(np.concatenate([batch.columns["image"] for batch in batches]), expected[0])
    np.testing.assert_array_equal(np.concatenate([batch.columns["label"] for batch in batches]), expected[1])
    for number, batch in enumerate(batches, 1):
        assert batch.columns["image"].shape == (batch_size, 2, 3)
        assert batch.columns["image"].dtype == np.float32
        assert batch.columns["label"].dtype == np.int64
        assert batch.columns["label"].flags.writeable
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
        np.testing.assert_array_equal(again.columns["image"], batches[at + 1].columns["image"])
        np.testing.assert_array_equal(again.columns["label"], batches[at + 1].columns["label"])
        assert again.cursor == batches[at + 1].cursor


def test_a_cursor_at_the_end_of_an_epoch_starts_the_next(table):
    rows = table[0]
    order = Order(5, rows.shard_rows, 1, 0)
    with (
        loader(rows, order, cursor=Cursor(epoch=0, position=37)) as end,
        loader(rows, order, cursor=Cursor(epoch=1, position=0)) as start,
    ):
        first, second = next(end), next(start)
    np.testing.assert_array_equal(first.columns["label"], second.columns["label"])
    assert first.cursor == second.cursor


def test_timing_does_not_matter(table):
    rows = table[0]
    order = Order(5, rows.shard_rows, 2, 0)
    turn = threading.Semaphore(0)

    def held_up(images, draws, *, threads):
        turn.acquire()
        return PLAIN(images, draws, threads=threads)

    with loader(rows, order) as free, loader(rows, order, preprocess=held_up, prefetch=1) as slow:
        for _ in range(6):
            turn.release()
            np.testing.assert_array_equal(next(free).columns["image"], next(slow).columns["image"])
        turn.release(2)  # lets the thread come to the end of what it is making


def test_works_ahead_by_prefetch_and_no_further(table):
    rows, watched = table[0], Watched()
    with loader(rows, Order(0, rows.shard_rows, 1, 0), preprocess=watched, prefetch=2) as source:
        for taken in range(3):
            for _ in range(2 if taken == 0 else 1):
                assert watched.made.acquire(timeout=20)
            assert not watched.made.acquire(timeout=0.1)
            next(source)
        assert watched.made.acquire(timeout=20)
    assert watched.count == 5


@pytest.mark.parametrize(("batches_fit", "ahead"), [(0.5, 1), (1, 1), (2.5, 2), (100, 8)])
def test_large_batches_are_not_made_far_ahead(table, batches_fit, ahead):
    rows, watched = table[0], Watched()
    batch_bytes = 8 * (2 * 3 * 4 + 8)
    options = {"prefetch": 8, "prefetch_bytes": int(batches_fit * batch_bytes)}
    with loader(rows, Order(0, rows.shard_rows, 1, 0), preprocess=watched, **options) as source:
        for _ in range(ahead):
            assert watched.made.acquire(timeout=20)
        assert not watched.made.acquire(timeout=0.1)
        assert next(source).nbytes == batch_bytes
        assert watched.made.acquire(timeout=20)
    assert watched.count == ahead + 1


def test_without_further_notice_four_batches_or_256_mb_are_made_ahead(table):
    rows = table[0]
    order = Order(0, rows.shard_rows, 1, 0)

    def large(images, draws, *, threads):
        return np.empty((8, 1 << 21, 6), np.float32)  # 384 MB that are never written to

    with loader(rows, order) as small, loader(rows, order, preprocess=large) as source:
        next(small)
        next(source)
        assert (small._ahead, source._ahead) == (4, 1)


@pytest.mark.parametrize("ahead", [1, 3])
def test_memory_is_what_the_docstring_says(tmp_path, ahead):
    rows, batch_size = make_table(tmp_path, [300, 300], shape=(3, 64, 64))[0], 256
    watched = Watched()
    stored = batch_size * 3 * 64 * 64
    tracemalloc.start()
    try:
        order = Order(0, rows.shard_rows, 1, 0)
        with loader(rows, order, batch_size=batch_size, preprocess=watched, prefetch=ahead) as source:
            for taken in range(6):
                for _ in range(ahead if taken == 0 else 1):
                    assert watched.made.acquire(timeout=20)
                batch = next(source)
            assert batch.columns["image"].nbytes == 4 * stored
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    bound = (ahead + 2) * 4 * stored + stored
    pieces = 5 << 20  # what is gathered and converted at a time, and labels
    assert bound - 4 * stored < peak < bound + pieces


def test_without_preprocessing_batches_are_the_stored_rows_and_their_draws(table):
    rows, images, labels = table
    order = Order(5, rows.shard_rows, 2, 0)
    with loader(rows, order, preprocess=None) as source:
        batches = take(source, 5)
    wanted = np.concatenate([order.rows(epoch, 0, len(order)) for epoch in range(3)])[:40]
    epochs = np.arange(40) // len(order)
    draws = np.stack([row_draws(5, int(e), np.array([row]))[0] for row, e in zip(wanted, epochs, strict=True)])
    np.testing.assert_array_equal(np.concatenate([batch.columns["image"] for batch in batches]), images[wanted])
    np.testing.assert_array_equal(np.concatenate([batch.columns["label"] for batch in batches]), labels[wanted])
    np.testing.assert_array_equal(np.concatenate([batch.draws for batch in batches]), draws)
    assert batches[0].columns["image"].dtype == np.uint8
    assert batches[0].draws.dtype == np.uint32
    assert batches[0].nbytes == 8 * (2 * 3 + 8 + 16)


def test_nothing_is_copied_without_preprocessing(table):
    rows = table[0]
    taken = []

    class Remembers:
        def __getattr__(self, name):
            return getattr(rows, name)

        def __len__(self):
            return len(rows)

        def take(self, numbers, draws):
            taken.append(rows.take(numbers))
            return dict(taken[-1])

    with loader(Remembers(), Order(5, rows.shard_rows, 2, 0), preprocess=None) as source:
        batch = next(source)
    assert batch.columns["image"] is taken[0]["image"]
    assert batch.columns["label"] is taken[0]["label"]


@pytest.mark.parametrize("threads", [2, 5])
def test_the_same_batches_from_any_number_of_threads(tmp_path, threads):
    rows = make_table(tmp_path, [40, 30], shape=(3, 200, 210))[0]
    order = Order(3, rows.shard_rows, 1, 0)
    normalise = Normalise(mean=None, scale=0.5, crop=190, cut="random", mirror=True)
    with (
        loader(rows, order, batch_size=50, preprocess=normalise) as one,
        loader(rows, order, batch_size=50, preprocess=normalise, threads=threads) as several,
    ):
        for _ in range(3):
            first, second = next(one), next(several)
            np.testing.assert_array_equal(first.columns["image"], second.columns["image"])
            np.testing.assert_array_equal(first.columns["label"], second.columns["label"])
            assert first.cursor == second.cursor
            assert first.draws is None


def test_close_leaves_no_thread(tmp_path):
    before = set(threading.enumerate())
    rows = make_table(tmp_path, [60], shape=(3, 200, 200))[0]
    with loader(rows, Order(3, rows.shard_rows, 1, 0), batch_size=60, threads=3) as source:
        next(source)
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) == before


def test_an_error_in_one_of_several_threads_reaches_the_consumer(tmp_path, monkeypatch):
    def fails(self, result, images, piece):
        raise ZeroDivisionError(threading.current_thread().name)

    monkeypatch.setattr(Normalise, "_fill_at_once", fails)
    rows = make_table(tmp_path, [60], shape=(3, 200, 200))[0]
    with (
        loader(rows, Order(3, rows.shard_rows, 1, 0), batch_size=60, threads=3) as source,
        pytest.raises(DataError, match="ZeroDivisionError: sparknet-normalise"),
    ):
        next(source)


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

    def stuck(images, draws, *, threads):
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
    with source._changed:
        assert source._changed.wait_for(lambda: source._closed, 20)
    go.set()
    closer.join(20)
    consumer.join(20)
    assert not consumer.is_alive()
    assert isinstance(outcome[-1], ValueError)


def test_an_error_reaches_the_consumer_with_its_cause_each_time(table):
    rows = table[0]

    def broken(images, draws, *, threads):
        raise ZeroDivisionError("by zero")

    with loader(rows, Order(0, rows.shard_rows, 1, 0), preprocess=broken) as source:
        for _ in range(2):
            with pytest.raises(DataError, match="loader stopped: ZeroDivisionError: by zero") as raised:
                next(source)
            assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_batches_before_an_error_are_delivered(table):
    rows = table[0]
    calls = []

    def third_fails(images, draws, *, threads):
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
    for sizes in ({"batch_size": 0}, {"prefetch": 0}, {"threads": 0}):
        with pytest.raises(DataError, match="all must be at least 1"):
            loader(rows, order, **sizes)
