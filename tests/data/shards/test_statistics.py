"""Sums over rows: exact for bytes, sound for floats, and the same however the rows are cut."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import random_rows
from sparknet.data.rows.columns import Column
from sparknet.data.shards import statistics
from sparknet.data.shards.statistics import Statistics

SHAPES = [(3, 4, 5), (2, 3), (6,), (1,)]


def columns(inputs):
    image = Column(name="image", dtype=str(inputs.dtype), shape=inputs.shape[1:])
    return (image, Column(name="label", dtype="int64", shape=(), classes=0))


def of(inputs, labels):
    return Statistics.of(columns(inputs), {"image": inputs, "label": labels})


def in_pieces(inputs, labels, cuts):
    edges = [0, *sorted(cuts), len(labels)]
    parts = (of(inputs[low:high], labels[low:high]) for low, high in itertools.pairwise(edges))
    return sum(parts, Statistics.none(columns(inputs)))


def expected_std(inputs):
    rows = inputs.astype(np.longdouble)
    return rows.std(axis=(0, *range(2, inputs.ndim))).astype(np.float64)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from(["uint8", "float32"]),
    rows=st.integers(1, 40),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_any_cut_of_the_rows_gives_their_moments(shape, dtype, rows, seed, data):
    inputs, labels = random_rows(rows, shape, classes=6, seed=seed)
    inputs = inputs.astype(dtype)
    found = in_pieces(inputs, labels, data.draw(st.lists(st.integers(0, rows), max_size=4)))
    total = found.sums["image"]
    axes = (0, *range(2, inputs.ndim))
    assert total.rows == rows
    np.testing.assert_array_equal(found.counts["label"], np.bincount(labels))
    np.testing.assert_array_equal(total.total, inputs.sum(axis=0, dtype=np.float64))
    np.testing.assert_allclose(total.channel_mean, inputs.mean(axis=axes, dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(total.channel_std, expected_std(inputs), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("mean", "spread"), [(1e6, 1.0), (-3e4, 0.01), (0.0, 1e-4)])
def test_a_small_spread_round_a_large_mean_is_not_lost(mean, spread):
    random = np.random.default_rng(0)
    inputs = (mean + spread * random.standard_normal((500, 2, 7))).astype(np.float32)
    total = in_pieces(inputs, np.zeros(500, int), [1, 100, 333]).sums["image"]
    np.testing.assert_allclose(total.channel_std, expected_std(inputs), rtol=1e-10)


@pytest.mark.parametrize("value", [0, 1, 254, 255])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_equal_values_spread_by_nothing_at_all(value, dtype):
    inputs = np.full((257, 3, 5), value, dtype)
    total = in_pieces(inputs, np.zeros(257, int), [3, 100]).sums["image"]
    assert total.channel_std == (0.0, 0.0, 0.0)
    assert total.channel_mean == (value,) * 3


def test_bytes_are_counted_exactly_in_blocks_of_any_size(monkeypatch):
    inputs, labels = random_rows(300, (3, 8, 8))
    inputs[:, 1] = 255  # the largest squares
    whole = of(inputs, labels).sums["image"].deviation
    monkeypatch.setattr(statistics, "_BLOCK_VALUES", 7)
    monkeypatch.setattr(statistics, "_MOST_SQUARES", 11)
    np.testing.assert_array_equal(of(inputs, labels).sums["image"].deviation, whole)
    assert whole[1] == 0


def test_sums_of_squares_of_the_largest_bytes_do_not_overflow():
    inputs = np.full(((1 << 16) + 10, 1), 255, np.uint8)
    inputs[0] = 0
    share = 1 / len(inputs)
    total = of(inputs, np.zeros(len(inputs), int)).sums["image"]
    np.testing.assert_allclose(total.channel_std, [255 * np.sqrt(share * (1 - share))], rtol=1e-12)


def test_nothing_adds_nothing():
    inputs, labels = random_rows(9, (3, 2, 2))
    nothing = Statistics.none(columns(inputs))
    empty = of(inputs[:0], labels[:0])
    assert (nothing.rows, nothing.counts["label"].sum(), nothing.sums["image"].total.sum()) == (0, 0, 0)
    total = (empty + of(inputs, labels) + nothing).sums["image"]
    np.testing.assert_allclose(total.channel_std, expected_std(inputs))


def test_saved_and_loaded(tmp_path):
    inputs, labels = random_rows(20, (3, 2, 2))
    before = of(inputs, labels)
    before.save(tmp_path / "sums.npz")
    after = Statistics.load(tmp_path / "sums.npz", columns(inputs))
    assert after.rows == 20
    np.testing.assert_array_equal(after.counts["label"], before.counts["label"])
    for name in ("total", "deviation"):
        np.testing.assert_array_equal(getattr(after.sums["image"], name), getattr(before.sums["image"], name))
