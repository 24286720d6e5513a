"""Cuts and mirroring: Caffe's arithmetic, drawn for each row, whatever the batches, threads and workers."""

import threading

import numpy as np
import pytest

from formats import make_table, random_rows
from sparknet.data.loading.loader import Loader
from sparknet.data.loading.row_random import row_draws
from sparknet.data.loading.sampling_order import Cursor, Order
from sparknet.data.loading.transform import Normalise
from sparknet.errors import DataError

IMAGES = random_rows(50, (3, 7, 9))[0]
MEAN = np.random.default_rng(0).random((3, 7, 9), np.float32) * 255
LARGE = random_rows(33, (3, 90, 100), seed=3)[0]
LARGE_MEAN = np.random.default_rng(1).random((3, 90, 100), np.float32) * 255


def by_hand(image, draws, *, crop, random, mirror, mean, scale):
    """data_transformer.cpp, Transform, pixel by pixel."""
    _, height, width = image.shape
    y, x = (height - crop) // 2, (width - crop) // 2
    if random:
        y, x = (int(draw) * (size - crop + 1) >> 32 for draw, size in zip(draws, (height, width), strict=False))
    result = np.empty((3, crop, crop), np.float32)
    turned = mirror and draws[2] >= 2**31
    for c, h, w in np.ndindex(3, crop, crop):
        taken_off = mean[c, y + h, x + w] if mean.shape[1:] == (height, width) else mean[c, 0, 0]
        value = (np.float32(image[c, y + h, x + w]) - taken_off) * np.float32(scale)
        result[c, h, crop - 1 - w if turned else w] = value
    return result


@pytest.mark.parametrize("cut", ["centre", "random"])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("mean", [MEAN, MEAN[:, :1, :1]], ids=["image", "values"])
def test_caffes_arithmetic(cut, mirror, mean):
    draws = row_draws(1, 2, np.arange(50))
    got = Normalise(mean=mean, scale=0.5, crop=4, cut=cut, mirror=mirror)(IMAGES, draws)
    expected = [
        by_hand(image, drawn, crop=4, random=cut == "random", mirror=mirror, mean=mean, scale=0.5)
        for image, drawn in zip(IMAGES, draws, strict=True)
    ]
    np.testing.assert_array_equal(got, np.stack(expected))
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert got.flags.writeable


def row_by_row(normalise, images, draws):
    """As people write it."""
    windows, result = normalise.windows(images.shape, draws), []
    for image, y, x, turned in zip(images, windows.ys, windows.xs, windows.turned, strict=True):
        row = image.astype(np.float32)
        if normalise.mean is not None:
            row = row - normalise.mean
        if normalise.crop:
            row = row[:, y : y + normalise.crop, x : x + normalise.crop]
        if normalise.factor is not None:
            row = row * normalise.factor
        result.append(row[:, :, ::-1] if turned else row)
    return np.stack(result)


STD = np.array([60, 70, 80], np.float32).reshape(3, 1, 1)
CASES = {
    "whole": {},
    "mirrored": {"mirror": True},
    "centre": {"crop": 80},
    "random": {"crop": 80, "cut": "random"},
    "random and mirrored": {"crop": 80, "cut": "random", "mirror": True},
    "centre and mirrored": {"crop": 80, "mirror": True},
    "small": {"crop": 16, "cut": "random", "mirror": True},
    "as large as the image": {"crop": 90, "cut": "random", "mirror": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mean", [None, LARGE_MEAN, LARGE_MEAN[:, :1, :1]], ids=["none", "image", "values"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_large_and_small_rows_alike(case, mean, dtype):
    images, draws = LARGE.astype(dtype), row_draws(6, 0, np.arange(33))
    for options in ({"scale": 1.0}, {"scale": 0.017, "std": STD}):
        normalise = Normalise(mean=mean, **options, **CASES[case])
        expected = row_by_row(normalise, images, draws)
        np.testing.assert_array_equal(normalise(images, draws), expected)


@pytest.mark.parametrize(("side", "cut"), [(20, True), (224, True), (20, False), (224, False)])
def test_the_same_bits_from_any_number_of_threads(side, cut, monkeypatch):
    seen, two_of_them = set(), threading.Event()
    take_part = Normalise._fill_by_row if cut else Normalise._fill_at_once

    def watched(*arguments):
        seen.add(threading.current_thread())
        if len(seen) == 2 or threading.current_thread() is threading.main_thread():
            two_of_them.set()
        assert two_of_them.wait(20)
        return take_part(*arguments)

    monkeypatch.setattr(Normalise, take_part.__name__, watched)
    images = random_rows((30 << 20) // (4 * 3 * side * side), (3, side + 8, side + 8))[0]
    draws = row_draws(0, 0, np.arange(len(images)))
    mean = np.random.default_rng(2).random(images.shape[1:], np.float32)
    options = {"crop": side, "cut": "random", "mirror": True} if cut else {}
    normalise = Normalise(mean=mean, scale=0.5, **options)
    results, counts = [], []
    for threads in (1, 2, 5):
        seen.clear()
        two_of_them.clear()
        results.append(normalise(images, draws, threads=threads))
        counts.append(len(seen))
    assert counts[:2] == [1, 2]
    assert 2 <= counts[2] <= 5
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sparknet-normalise")]


def test_a_few_rows_start_no_threads(monkeypatch):
    monkeypatch.setattr("sparknet.data.loading.transform.ThreadPoolExecutor", None)
    draws = row_draws(0, 0, np.arange(50))
    Normalise(mean=MEAN, scale=0.5, crop=4, cut="random", mirror=True)(IMAGES, draws, threads=8)


def test_an_error_of_one_thread_is_raised(monkeypatch):
    def fails(self, result, images, windows, means, piece):
        if windows.ys[piece.start] != 0:
            raise MemoryError("the second half")

    monkeypatch.setattr(Normalise, "_fill_by_row", fails)
    images = np.zeros((8, 4, 256, 256), np.uint8)
    windows = Normalise(mean=None, scale=1.0, crop=250).windows(images.shape, None)
    windows.ys[4:] = 1
    monkeypatch.setattr(Normalise, "windows", lambda *_: windows)
    with pytest.raises(MemoryError, match="the second half"):
        Normalise(mean=None, scale=1.0, crop=250)(images, threads=2)


def test_rows_that_are_not_next_to_each_other_in_memory():
    draws = row_draws(6, 0, np.arange(33))
    normalise = Normalise(mean=LARGE_MEAN, scale=1.0, crop=80, cut="random", mirror=True)
    turned = LARGE.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    turned.flags.writeable = False
    np.testing.assert_array_equal(normalise(turned, draws), normalise(LARGE, draws))
    np.testing.assert_array_equal(normalise(turned[::2], draws[::2]), normalise(LARGE, draws)[::2])


def test_every_window_is_cut_and_both_sides_are_seen():
    rows, normalise = 20_000, Normalise(mean=None, scale=1.0, crop=3, cut="random", mirror=True)
    windows = normalise.windows((rows, 1, 5, 6), row_draws(7, 0, np.arange(rows)))
    counts = np.bincount((windows.ys * 4 + windows.xs) * 2 + windows.turned, minlength=24)
    expected = rows / 24
    assert ((counts - expected) ** 2 / expected).sum() < 23 + 5 * np.sqrt(2 * 23)


@pytest.mark.parametrize("options", [{"crop": 4, "cut": "random"}, {"mirror": True}])
def test_what_is_drawn_needs_draws(options):
    with pytest.raises(ValueError, match="need draws"):
        Normalise(mean=None, scale=1.0, **options)(IMAGES)
    assert Normalise(mean=None, scale=1.0, crop=4)(IMAGES).shape == (50, 3, 4, 4)


def test_a_loader_draws_the_same_in_batches_of_any_size(tmp_path):
    table, _, _ = make_table(tmp_path, [23, 14], shape=(3, 6, 6))
    order = Order(5, table.shard_rows, 2, 1)
    normalise = Normalise(mean=None, scale=1.0, crop=3, cut="random", mirror=True)

    def rows(batch_size, count, cursor):
        source = Loader(table, order, batch_size=batch_size, cursor=cursor, preprocess={"image": normalise})
        with source:
            return np.concatenate([next(source).columns["image"] for _ in range(count // batch_size)])

    whole = rows(40, 40, Cursor())
    np.testing.assert_array_equal(rows(5, 40, Cursor()), whole)
    np.testing.assert_array_equal(rows(10, 20, Cursor(epoch=1, position=1)), whole[20:40])
    first, second = (order.draws(epoch, np.arange(5)) for epoch in (0, 1))
    assert not np.array_equal(first, second), "another epoch, other draws"


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_row_is_cut_alike_by_whatever_worker_reads_it(tmp_path, epoch):
    table, _, _ = make_table(tmp_path, [23, 14], shape=(3, 6, 6))
    normalise = Normalise(mean=None, scale=1.0, crop=3, cut="random", mirror=True)

    def seen(slots):
        rows = np.zeros((37, 3, 3, 3), np.float32)
        for slot in range(slots):
            order = Order(5, table.shard_rows, slots, slot)
            start = Cursor(epoch=epoch)
            with Loader(
                table,
                order,
                batch_size=len(order),
                cursor=start,
                preprocess={"image": normalise},
            ) as source:
                rows[order.rows(epoch, 0, len(order))] = next(source).columns["image"]
        return rows

    alone = seen(1)
    for slots in (2, 5):
        np.testing.assert_array_equal(seen(slots), alone)


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
    draws = row_draws(0, 0, np.arange(50))
    np.testing.assert_array_equal(again(IMAGES, draws), made(IMAGES, draws))
