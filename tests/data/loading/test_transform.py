"""Normalisation: (x - mean) * scale / std against the plain formula in float64."""

from dataclasses import replace

import numpy as np
import pytest

from a_manifest import MANIFEST
from formats import random_rows
from sparknet.data.loading.transform import Normalise
from sparknet.data.shards.manifest import save_mean_image
from sparknet.errors import DataError

MEANS = {
    "none": None,
    "channel": np.array([10, 20, 30], np.float32).reshape(3, 1, 1),
    "image": np.random.default_rng(0).random((3, 4, 5), np.float32) * 255,
}

IMAGE = MANIFEST.stored("image")


STDS = {
    "none": None,
    "one": np.array([3], np.float32).reshape(1, 1, 1),
    "channel": np.array([0.5, 1, 70], np.float32).reshape(3, 1, 1),
}


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("scale", [1.0, 1 / 256, -2.0])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_formula(mean, std, scale, dtype):
    images = random_rows(6, (3, 4, 5))[0].astype(dtype)
    before = images.copy()
    got = Normalise(mean=MEANS[mean], scale=scale, std=STDS[std])(images)
    expected = (images.astype(np.float64) - (0 if mean == "none" else MEANS[mean])) * scale
    expected /= 1 if std == "none" else STDS[std]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-4)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert got.flags.writeable
    np.testing.assert_array_equal(images, before)
    assert not np.shares_memory(got, images)


def test_read_only_and_strided_inputs():
    images = random_rows(6, (3, 4, 5))[0][::2]
    images.flags.writeable = False
    got = Normalise(mean=None, scale=1.0)(images)
    np.testing.assert_array_equal(got, images)
    assert got.flags.c_contiguous


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 64, 80), (70_000,)], ids=str)
@pytest.mark.parametrize("std", [None, 2.5])
def test_no_row_is_too_large_or_too_many(shape, std):
    images = random_rows(40, shape)[0]
    mean = np.random.default_rng(1).random(shape, np.float32) * 255
    normalise = Normalise(mean=mean, scale=0.5, std=None if std is None else np.array([std], np.float32))
    expected = (images.astype(np.float32) - mean) * np.float32(0.5 / (std or 1))
    for threads in (1, 2, 5):
        np.testing.assert_array_equal(normalise(images, threads=threads), expected)
    assert normalise(images[:0]).shape == (0, *shape)


def test_a_deviation_makes_the_variance_1():
    images = random_rows(500, (3, 4, 5))[0]
    channels = images.transpose(1, 0, 2, 3).reshape(3, -1)
    mean, std = (stat.astype(np.float32).reshape(3, 1, 1) for stat in (channels.mean(1), channels.std(1)))
    got = Normalise(mean=mean, scale=1 / 255, std=std / 255)(images).transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(got.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(got.std(1), 1, rtol=1e-5)


def test_from_manifest(tmp_path):
    image = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    save_mean_image(tmp_path, 0, image)
    assert Normalise.of_rows(IMAGE, tmp_path, mean="none", scale=2.0).mean is None
    channel = Normalise.of_rows(IMAGE, tmp_path, mean="channel", scale=2.0)
    assert channel.mean.shape == (3, 1, 1)
    assert channel.mean.ravel().tolist() == [1.5, 2.0, 0.25]
    whole = Normalise.of_rows(IMAGE, tmp_path, mean="image", scale=2.0)
    np.testing.assert_array_equal(whole.mean, image)
    assert whole.scale == 2.0
    assert whole.std is None


@pytest.mark.parametrize("scale", [1.0, 0.25, -0.25])
def test_the_rows_deviation_is_in_units_of_what_was_scaled(tmp_path, scale):
    told = replace(IMAGE, channel_std=(8.0, 0.0, 2.0))
    made = Normalise.of_rows(told, tmp_path, mean="none", scale=scale, std="channel")
    assert made.std.shape == (3, 1, 1)
    assert made.std.dtype == np.float32
    assert made.std.ravel().tolist() == [8 * abs(scale), 1, 2 * abs(scale)], "what never changes divides by 1"
    images = np.full((1, 3, 2, 2), 16, np.uint8)
    sign = np.sign(scale)
    np.testing.assert_allclose(made(images)[0, :, 0, 0], [2 * sign, 16 * scale, 8 * sign])


def test_channel_mean_of_plain_vectors(tmp_path):
    vector = replace(IMAGE, column=replace(IMAGE.column, shape=(3,)))
    normalise = Normalise.of_rows(vector, tmp_path, mean="channel", scale=1.0)
    np.testing.assert_array_equal(normalise(np.array([[2, 2, 2]], np.uint8)), [[0.5, 0, 1.75]])


def test_deviation_of_plain_vectors(tmp_path):
    vector = replace(IMAGE, column=replace(IMAGE.column, shape=(3,)), channel_std=(0.5, 0.25, 1.75))
    normalise = Normalise.of_rows(vector, tmp_path, mean="channel", scale=1.0, std="channel")
    np.testing.assert_array_equal(normalise(np.array([[2, 3, 2]], np.uint8)), [[1, 4, 1]])


def test_missing_mean_image(tmp_path):
    with pytest.raises(DataError, match=r"mean-0.npy: cannot be read"):
        Normalise.of_rows(IMAGE, tmp_path, mean="image", scale=1.0)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("std", STDS)
def test_round_trip_through_arrays(mean, std):
    images = random_rows(3, (3, 4, 5))[0]
    made = Normalise(mean=MEANS[mean], scale=1 / 3, std=STDS[std])
    again = Normalise.from_arrays(made.to_arrays())
    assert again.scale == made.scale
    np.testing.assert_array_equal(again(images), made(images))


def test_arrays_of_before_there_was_a_deviation():
    older = {"scale": np.array(0.5), "mean": np.ones((3, 1, 1), np.float32), "crop": np.array(2)}
    made = Normalise.from_arrays(older)
    assert (made.std, made.scale, made.crop) == (None, 0.5, 2)
    assert "std" not in made.to_arrays()


@pytest.mark.parametrize("arrays", [{}, {"mean": np.zeros(1)}, {"scale": np.ones(()), "shift": np.ones(1)}])
def test_other_arrays_are_refused(arrays):
    with pytest.raises(DataError, match=r"preprocessing arrays are \[.*\]; they must be scale"):
        Normalise.from_arrays(arrays)
