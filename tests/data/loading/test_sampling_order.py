"""The sampling order: every row once an epoch over all slots, whatever is asked in whatever order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparknet.data.loading.sampling_order import Cursor, Order
from sparknet.errors import DataError

SHARDS = st.lists(st.integers(0, 400), max_size=8)


def whole(order, epoch=0):
    return order.rows(epoch, 0, len(order))


@settings(max_examples=150, deadline=None)
@given(
    shards=SHARDS,
    slots=st.integers(1, 9),
    seed=st.integers(0, 2**70),
    epoch=st.integers(0, 5),
    block=st.integers(1, 40),
)
def test_every_row_exactly_once_an_epoch(shards, slots, seed, epoch, block):
    parts = [whole(Order(seed, shards, slots, slot, block_rows=block), epoch) for slot in range(slots)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(sum(shards)))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=80, deadline=None)
@given(shards=SHARDS, slots=st.integers(1, 4), data=st.data())
def test_any_slice_is_that_slice_of_the_whole(shards, slots, data):
    slot = data.draw(st.integers(0, slots - 1))
    block = data.draw(st.integers(1, 3))  # windows of 64 to 192 rows
    order = Order(3, shards, slots, slot, block_rows=block)
    expected = {epoch: whole(Order(3, shards, slots, slot, block_rows=block), epoch) for epoch in range(4)}
    for _ in range(6):
        epoch = data.draw(st.integers(0, 3))
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(order))] * 2)))
        np.testing.assert_array_equal(order.rows(epoch, start, stop), expected[epoch][start:stop])


def test_epochs_seeds_and_slots_differ():
    first = whole(Order(0, [5000], 2, 0))
    assert first.dtype == np.int64
    for other in (
        whole(Order(0, [5000], 2, 0), epoch=1),
        whole(Order(1, [5000], 2, 0)),
        whole(Order(0, [5000], 2, 1)),
    ):
        assert (first != other).mean() > 0.99
    np.testing.assert_array_equal(first, whole(Order(0, [5000], 2, 0)))


def test_more_slots_than_rows():
    orders = [Order(0, [2, 0, 1], 5, slot) for slot in range(5)]
    assert sorted(len(order) for order in orders) == [0, 0, 1, 1, 1]
    assert sorted(np.concatenate([whole(order) for order in orders]).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("shards", [[], [0], [0, 0]])
def test_no_rows_at_all(shards):
    assert len(Order(0, shards, 2, 1)) == 0
    assert whole(Order(0, shards, 2, 1)).tolist() == []


@pytest.mark.parametrize(("rows", "slots"), [(1440, 2), (1440, 8), (50_000, 2), (50_000, 5)])
def test_rows_sorted_by_class_reach_every_slot_and_batch_mixed(rows, slots):
    labels = np.arange(rows) * 10 // rows
    for slot in range(slots):
        seen = labels[whole(Order(1, [rows // 4] * 4, slots, slot))]
        shares = np.bincount(seen, minlength=10) / len(seen)
        assert shares.min() > 0.02, f"slot {slot} misses a class"
        for at in range(0, len(seen) - 64, 64):
            assert len(np.unique(seen[at : at + 64])) >= 6, f"slot {slot}, batch at {at}"


def test_blocks_keep_reading_local():
    # within a window of 64 blocks the rows come from 64 places, not from everywhere
    order = Order(0, [1_000_000], 2, 0)
    window = np.sort(order.rows(0, 0, 64 * 256))
    assert (np.diff(window) == 1).mean() > 0.99


def test_memory_is_a_window_not_the_epoch():
    order = Order(0, [200_000_000], 4, 3)
    assert len(order) == 50_000_000
    rows = order.rows(2, 30_000_000, 30_000_100)
    assert len(set(rows.tolist())) == 100
    kept = order._windows._kept
    assert sum(window.size for window in kept.values()) <= 2 * 64 * 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, [3], 0, 0), "slots is 0; an order needs at least one"),
        ((0, [3], 2, 2), "slot is 2; it must be 0 to 1 for 2 slots"),
        ((0, [3], 2, -1), "slot is -1"),
        ((-1, [3], 2, 0), "seed is -1; it must be at least 0"),
        ((0, [3, -1], 2, 0), r"shard_rows is \[3, -1\]"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(DataError, match=message):
        Order(*arguments)


def test_rows_outside_the_epoch():
    order = Order(0, [10], 2, 0)
    for start, stop in ((0, 6), (-1, 2), (3, 2)):
        with pytest.raises(IndexError, match=f"rows {start}..{stop} of a slot with 5 rows an epoch"):
            order.rows(0, start, stop)


def test_a_known_order_stays():
    # A run that is resumed by a later release must go on with the same rows.
    assert Order(7, [6, 0, 5], 2, 1).rows(3, 0, 6).tolist() == [0, 1, 7, 9, 5, 10]


@given(position=st.integers(0, 99), steps=st.lists(st.integers(0, 500), max_size=5), epoch=st.integers(0, 3))
def test_cursor_advances_as_rows_are_counted(position, steps, epoch):
    cursor = Cursor(epoch=epoch, position=position)
    for rows in steps:
        cursor = cursor.advance(rows, rows_per_epoch=100)
        assert 0 <= cursor.position < 100
    assert cursor.epoch * 100 + cursor.position == epoch * 100 + position + sum(steps)


def test_a_place_among_other_rows_is_the_next_passs_beginning():
    place = Cursor(epoch=3, position=5, rows="here")
    assert place.among("here") == place
    assert place.among("there") == Cursor(epoch=4, position=0, rows="there")
    # Nothing of the pass was read: none is left out.
    assert Cursor(epoch=3).among("there") == Cursor(epoch=3, rows="there")
    assert place.advance(7, rows_per_epoch=10) == Cursor(epoch=4, position=2, rows="here")
