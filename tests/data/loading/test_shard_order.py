"""The order for fetched shards: every row once an epoch, whatever is asked, and few shards at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparknet.data.loading.sampling_order import Order
from sparknet.data.loading.shard_order import ShardOrder
from sparknet.errors import DataError

SHARDS = st.lists(st.integers(0, 300), max_size=12)


def whole(order, epoch=0):
    return order.rows(epoch, 0, len(order))


def shards_of(rows, shard_rows):
    return np.searchsorted(np.cumsum(shard_rows), rows, side="right")


def rows_in(ranges):
    return {row for low, high in ranges for row in range(low, high)}


@settings(max_examples=150, deadline=None)
@given(
    shards=SHARDS,
    slots=st.integers(1, 9),
    seed=st.integers(0, 2**70),
    epoch=st.integers(0, 5),
    window=st.integers(1, 5),
)
def test_every_row_exactly_once_an_epoch(shards, slots, seed, epoch, window):
    orders = [ShardOrder(seed, shards, slots, slot, window_shards=window) for slot in range(slots)]
    parts = [whole(order, epoch) for order in orders]
    assert sorted(np.concatenate(parts).tolist()) == list(range(sum(shards)))
    assert [len(part) for part in parts] == [len(Order(seed, shards, slots, slot)) for slot in range(slots)]


@settings(max_examples=80, deadline=None)
@given(shards=SHARDS, slots=st.integers(1, 4), data=st.data())
def test_any_slice_is_that_slice_of_the_whole(shards, slots, data):
    slot, window = data.draw(st.integers(0, slots - 1)), data.draw(st.integers(1, 3))
    order = ShardOrder(3, shards, slots, slot, window_shards=window)
    expected = [whole(ShardOrder(3, shards, slots, slot, window_shards=window), epoch) for epoch in range(3)]
    for _ in range(6):
        epoch = data.draw(st.integers(0, 2))
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(order))] * 2)))
        np.testing.assert_array_equal(order.rows(epoch, start, stop), expected[epoch][start:stop])


@settings(max_examples=80, deadline=None)
@given(shards=SHARDS, slots=st.integers(1, 4), data=st.data())
def test_what_is_read_next_was_told_before(shards, slots, data):
    slot, window = data.draw(st.integers(0, slots - 1)), data.draw(st.integers(1, 3))
    order = ShardOrder(5, shards, slots, slot, window_shards=window)
    if not len(order):
        assert order.ahead(0, 0) == ()
        return
    at = data.draw(st.integers(0, len(order) - 1))
    told = rows_in(order.ahead(2, at))
    assert int(order.rows(2, at, at + 1)[0]) in told
    # The shards of this window, and of the next one: the end of the epoch is followed by the next epoch's begin.
    assert len(order.ahead(2, at)) <= 2 * window
    assert int(order.rows(3, 0, 1)[0]) in rows_in(order.ahead(2, len(order)))


def test_all_slots_together_fetch_about_one_copy():
    shards, slots = [1000] * 64, 4
    for epoch in range(3):
        seen = [set(shards_of(whole(ShardOrder(1, shards, slots, slot), epoch), shards)) for slot in range(slots)]
        # A shard on an edge is read by two slots.
        assert sum(len(one) for one in seen) <= 64 + slots
        assert set.union(*seen) == set(range(64))


def test_another_epoch_gives_a_slot_other_shards():
    order = ShardOrder(1, [100] * 64, 4, 0)
    first, second = (set(shards_of(whole(order, epoch), [100] * 64)) for epoch in (0, 1))
    assert len(first & second) < 10


def test_few_shards_are_open_at_a_time_and_rows_of_them_are_mixed():
    shards = [1000] * 40
    rows = whole(ShardOrder(2, shards, 2, 1))
    for at in range(0, len(rows) - 250, 250):
        assert len(set(shards_of(rows[at : at + 250], shards))) <= 8
    # A batch has rows of all four shards of its window.
    inside = rows[:4000]
    assert min(len(set(shards_of(inside[at : at + 64], shards))) for at in range(0, 3900, 64)) >= 3
    assert (np.diff(inside) == 1).mean() < 0.05


def test_few_large_shards_are_cut_among_many_slots():
    orders = [ShardOrder(0, [1000, 1000], 5, slot) for slot in range(5)]
    assert [len(order) for order in orders] == [400] * 5
    assert max(len(set(shards_of(whole(order), [1000, 1000]))) for order in orders) == 2


def test_seeds_slots_and_epochs_differ():
    first = whole(ShardOrder(0, [500] * 8, 2, 0))
    for other in (
        whole(ShardOrder(0, [500] * 8, 2, 0), epoch=1),
        whole(ShardOrder(1, [500] * 8, 2, 0)),
        whole(ShardOrder(0, [500] * 8, 2, 1)),
    ):
        assert (first != other).mean() > 0.98
    np.testing.assert_array_equal(first, whole(ShardOrder(0, [500] * 8, 2, 0)))


def test_a_row_draws_the_same_in_both_orders():
    rows = np.array([5, 700, 3])
    ours, theirs = (kind(4, [900], 2, 0).draws(3, rows) for kind in (ShardOrder, Order))
    np.testing.assert_array_equal(ours, theirs)


def test_memory_is_a_window_not_the_epoch():
    order = ShardOrder(0, [2_000_000] * 100, 4, 3)
    assert len(set(order.rows(2, 30_000_000, 30_000_100).tolist())) == 100
    kept = [window for inner in order._orders._kept.values() for window in inner._windows._kept.values()]
    assert sum(window.size for window in kept) <= 4 * 64 * 256


def test_refused_arguments():
    with pytest.raises(DataError, match="slot is 2; it must be 0 to 1 for 2 slots"):
        ShardOrder(0, [3], 2, 2)
    with pytest.raises(IndexError, match=r"rows 0\.\.6 of a slot with 5 rows an epoch"):
        ShardOrder(0, [10], 2, 0).rows(0, 0, 6)


def test_a_known_order_stays():
    # A run that is resumed by a later release must go on with the same rows.
    assert ShardOrder(7, [3, 0, 5, 4], 2, 1, window_shards=2).rows(3, 0, 6).tolist() == [1, 7, 6, 0, 2, 5]
