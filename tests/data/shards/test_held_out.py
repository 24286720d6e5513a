"""The drawn split: exact in number, the same however the rows are batched, and free of patterns."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparknet.data.shards.held_out import held_out

FRACTIONS = st.floats(0.001, 0.999)


def draw(rows, *, fraction, seed=0, partition=0, start=0):
    return held_out(seed, partition=partition, start=start, rows=rows, fraction=fraction)


@settings(max_examples=200, deadline=None)
@given(rows=st.integers(0, 5000), fraction=FRACTIONS, seed=st.integers(0, 2**40))
def test_any_first_rows_hold_out_their_share_to_within_one(rows, fraction, seed):
    counts = np.cumsum(draw(rows, fraction=fraction, seed=seed))
    expected = np.arange(1, rows + 1) * fraction
    assert (np.abs(counts - expected) <= 1.001).all()


def test_two_rows_at_one_half_are_one_of_each():
    assert all(draw(2, fraction=0.5, seed=seed).sum() == 1 for seed in range(200))


@settings(max_examples=100, deadline=None)
@given(
    fraction=FRACTIONS,
    cuts=st.lists(st.integers(0, 3000), max_size=6),
    partition=st.integers(0, 3),
)
def test_batches_do_not_matter(fraction, cuts, partition):
    edges = [0, *sorted(cuts), 3000]
    parts = [
        draw(stop - start, fraction=fraction, partition=partition, start=start)
        for start, stop in itertools.pairwise(edges)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), draw(3000, fraction=fraction, partition=partition))


def test_nothing_is_held_out_of_nothing_or_with_no_fraction():
    assert draw(0, fraction=0.5).tolist() == []
    assert not draw(100, fraction=0.0).any()


def test_seeds_and_partitions_draw_differently():
    base = draw(10_000, fraction=0.2)
    assert base.sum() == pytest.approx(2000, abs=1)
    for other in (draw(10_000, fraction=0.2, seed=1), draw(10_000, fraction=0.2, partition=1)):
        assert 0.1 < (base & other).sum() / 2000 < 0.3


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_every_row_is_held_out_as_often_as_the_fraction_says(fraction):
    draws = np.stack([draw(200, fraction=fraction, seed=seed) for seed in range(3000)])
    # 6 standard deviations of a share of 3000 draws
    assert np.abs(draws.mean(axis=0) - fraction).max() < 6 * np.sqrt(0.25 / 3000)
