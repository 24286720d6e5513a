"""Cuts and mirroring: Caffe's arithmetic, drawn per row, whatever the batches."""

from itertools import pairwise

import numpy as np
import pytest

from formats import make_table, random_rows
from sparknet.data import Cursor, Loader, Normalise, Order
from sparknet.data.order import row_draws
from sparknet.errors import DataError

IMAGES = random_rows(50, (3, 7, 9))[0]
MEAN = np.random.default_rng(0).random((3, 7, 9), np.float32) * 255


def by_hand(image, draws, *, crop, random, mirror, mean, scale):
    """data_transformer.cpp, Transform, pixel by pixel."""
    _, height, width = image.shape
    y, x = (height - crop) // 2, (width - crop) // 2
    if random:
        y, x = int(draws[0] % np.uint64(height - crop + 1)), int(draws[1] % np.uint64(width - crop + 1))
    result = np.empty((3, crop, crop), np.float32)
    turned = mirror and draws[2] >= 2**63
    for c, h, w in np.ndindex(3, crop, crop):
        taken_off = mean[c, y + h, x + w] if mean.shape[1:] == (height, width) else mean[c, 0, 0]
        value = (np.float32(image[c, y + h, x + w]) - taken_off) * np.float32(scale)
        result[c, h, crop - 1 - w if turned else w] = value
    return result


@pytest.mark.parametrize("cut", ["centre", "random"])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("mean", [MEAN, MEAN[:, :1, :1]], ids=["image", "values"])
def test_caffes_arithmetic(cut, mirror, mean):
    draws = row_draws((1, 2), 0, 50)
    got = Normalise(mean=mean, scale=0.5, crop=4, cut=cut, mirror=mirror)(IMAGES, draws)
    expected = [
        by_hand(image, drawn, crop=4, random=cut == "random", mirror=mirror, mean=mean, scale=0.5)
        for image, drawn in zip(IMAGES, draws, strict=True)
    ]
    np.testing.assert_array_equal(got, np.stack(expected))
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert got.flags.writeable


def test_every_place_and_both_sides_are_drawn_alike():
    draws = row_draws((7,), 0, 30_000)
    ys = draws[:, 0] % np.uint64(4)
    counts = np.bincount(ys.astype(int))
    assert counts.min() > 0.95 * 7500
    assert 0.48 < (draws[:, 2] >= 2**63).mean() < 0.52
    assert abs(np.corrcoef(ys, draws[:, 1] % np.uint64(6))[0, 1]) < 0.02


@pytest.mark.parametrize("edges", [[0, 100], [0, 1, 2, 50, 100], [0, 33, 99, 100]])
def test_a_rows_numbers_depend_on_its_place_alone(edges):
    whole = row_draws((3, 1), 0, 100)
    pieces = [row_draws((3, 1), a, b) for a, b in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert len(np.unique(whole)) == whole.size
    assert not np.array_equal(whole, row_draws((3, 2), 0, 100))


def test_a_loader_draws_the_same_in_batches_of_any_size(tmp_path):
    table, _, _ = make_table(tmp_path, [23, 14], shape=(3, 6, 6))
    order = Order(5, table.shard_rows, 2, 1)
    normalise = Normalise(mean=None, scale=1.0, crop=3, cut="random", mirror=True)

    def rows(batch_size, count, cursor):
        source = Loader(
            table, order, batch_size=batch_size, cursor=cursor, image="image", label="label", preprocess=normalise
        )
        with source:
            return np.concatenate([next(source).images for _ in range(count // batch_size)])

    whole = rows(40, 40, Cursor())
    np.testing.assert_array_equal(rows(5, 40, Cursor()), whole)
    np.testing.assert_array_equal(rows(10, 20, Cursor(epoch=1, position=1)), whole[20:40])
    first, second = (order.draws(epoch, 0, 5) for epoch in (0, 1))
    assert not np.array_equal(first, second), "another epoch, other draws"


def test_shapes():
    cut = Normalise(mean=None, scale=1.0, crop=5)
    assert cut.row_shape((3, 7, 9)) == (3, 5, 5)
    assert Normalise(mean=None, scale=1.0).row_shape((12,)) == (12,)
    with pytest.raises(DataError, match=r"crop_size is 8 and the images are 7x9; .*at least as large"):
        Normalise(mean=None, scale=1.0, crop=8).row_shape((3, 7, 9))
    with pytest.raises(DataError, match=r"shape \(12,\); cutting and mirroring take \(channels, height, width\)"):
        Normalise(mean=None, scale=1.0, mirror=True).row_shape((12,))


def test_round_trip_through_arrays():
    made = Normalise(mean=MEAN, scale=0.25, crop=4, cut="random", mirror=True)
    again = Normalise.from_arrays(made.to_arrays())
    draws = row_draws((0,), 0, 50)
    np.testing.assert_array_equal(again(IMAGES, draws), made(IMAGES, draws))
