"""Each row's random numbers: Philox as published, the row's own, and evenly spread."""

import math
import timeit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparknet.data.loading.row_random import philox, places, row_draws, tosses
from sparknet.data.loading.sampling_order import Order

FULL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([FULL] * 4, (FULL, FULL), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_the_known_answers_of_random123(counter, key, answer):
    # one among others, which must not change it
    counters = np.array([[1, 2, 3, 4], counter, counter], np.uint64).T
    before = counters.copy()
    got = philox(counters, key)
    assert got[:, 1].tolist() == got[:, 2].tolist() == answer
    np.testing.assert_array_equal(counters, before)


def by_hand(counter, key):
    """Salmon et al. (2011), section 3.3, one number at a time."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (right >> 32) ^ b ^ k0, right & FULL, (left >> 32) ^ d ^ k1, left & FULL
        k0, k1 = (k0 + 0x9E3779B9) & FULL, (k1 + 0xBB67AE85) & FULL
    return [a, b, c, d]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(0, 2**62), min_size=1, max_size=5),
    epoch=st.integers(0, FULL),
    seed=st.integers(0, 2**70),
)
def test_row_epoch_and_stream_are_the_counter_and_the_seed_is_the_key(rows, epoch, seed):
    key = [int(part) for part in np.random.SeedSequence(seed).generate_state(2, np.uint32)]
    for stream, number in (("training", 0), ("evaluation", 1)):
        got = row_draws(seed, epoch, np.array(rows), stream=stream)
        assert got.dtype == np.uint32
        assert got.tolist() == [by_hand([row & FULL, row >> 32, epoch, number], key) for row in rows]


def test_they_are_the_rows_own_whatever_is_asked_with_it():
    rows = np.random.default_rng(0).permutation(1000)
    whole = row_draws(3, 1, np.arange(1000))
    np.testing.assert_array_equal(row_draws(3, 1, rows), whole[rows])
    np.testing.assert_array_equal(row_draws(3, 1, rows[17:18]), whole[rows[17:18]])
    assert row_draws(3, 1, np.arange(0)).shape == (0, 4)
    for other in (
        row_draws(4, 1, np.arange(1000)),
        row_draws(3, 2, np.arange(1000)),
        row_draws(3, 1, np.arange(1000) + 2**32),
        row_draws(3, 1, np.arange(1000), stream="evaluation"),
    ):
        assert (other == whole).mean() < 0.001


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_every_worker_draws_the_same_for_a_row(slots):
    seen = np.zeros((120, 4), np.uint32)
    for slot in range(slots):
        order = Order(9, [70, 50], slots, slot)
        rows = order.rows(4, 0, len(order))
        seen[rows] = order.draws(4, rows)
    np.testing.assert_array_equal(seen, row_draws(9, 4, np.arange(120)))


def chi_square(counts):
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("count", [2, 7, 33])
@pytest.mark.parametrize("number", range(4))
def test_places_are_drawn_alike(count, number):
    at = places(row_draws(1, 0, np.arange(66_000))[:, number], count)
    assert at.dtype == np.int64
    assert (at.min(), at.max()) == (0, count - 1)
    # within five standard deviations of a chi-square with count - 1 degrees of freedom
    assert chi_square(np.bincount(at)) < count - 1 + 5 * math.sqrt(2 * (count - 1))


def test_places_are_independent_of_each_other_and_of_the_mirror():
    draws = row_draws(2, 0, np.arange(40_000))
    pairs = places(draws[:, 0], 8) * 16 + places(draws[:, 1], 8) * 2 + tosses(draws[:, 2])
    assert chi_square(np.bincount(pairs, minlength=128)) < 127 + 5 * math.sqrt(2 * 127)


def test_rows_next_to_each_other_and_passes_one_after_another_have_nothing_in_common():
    first, second = (places(row_draws(2, epoch, np.arange(40_001))[:, 0], 8) for epoch in (0, 1))
    for pairs in (first[1:] * 8 + first[:-1], first * 8 + second):
        assert chi_square(np.bincount(pairs, minlength=64)) < 63 + 5 * math.sqrt(2 * 63)


def test_half_of_the_rows_are_mirrored():
    share = tosses(row_draws(5, 0, np.arange(40_000))[:, 2]).mean()
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(40_000)


def test_the_ends_of_the_range():
    edges = np.array([0, 2**31 - 1, 2**31, FULL], np.uint32)
    assert places(edges, 10).tolist() == [0, 4, 5, 9]
    assert places(edges, 1).tolist() == [0, 0, 0, 0]
    assert tosses(edges).tolist() == [False, False, True, True]


def test_a_batch_costs_next_to_nothing():
    rows = np.arange(256)
    assert min(timeit.repeat(lambda: row_draws(0, 0, rows), number=1, repeat=20)) < 0.0005
