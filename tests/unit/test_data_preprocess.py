"""Normalisation: (x - mean) * scale against the plain formula in float64."""

from dataclasses import replace

import numpy as np
import pytest
from test_data_manifest import MANIFEST

from formats import random_rows
from sparknet.data import Normalise
from sparknet.data.manifest import save_mean_image
from sparknet.errors import DataError

MEANS = {
    "none": None,
    "channel": np.array([10, 20, 30], np.float32).reshape(3, 1, 1),
    "image": np.random.default_rng(0).random((3, 4, 5), np.float32) * 255,
}


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("scale", [1.0, 1 / 256, -2.0])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_formula(mean, scale, dtype):
    images = random_rows(6, (3, 4, 5))[0].astype(dtype)
    before = images.copy()
    got = Normalise(mean=MEANS[mean], scale=scale)(images)
    expected = (images.astype(np.float64) - (0 if mean == "none" else MEANS[mean])) * scale
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


def test_from_manifest(tmp_path):
    image = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    save_mean_image(tmp_path, image)
    assert Normalise.from_manifest(MANIFEST, tmp_path, mean="none", scale=2.0).mean is None
    channel = Normalise.from_manifest(MANIFEST, tmp_path, mean="channel", scale=2.0)
    assert channel.mean.shape == (3, 1, 1)
    assert channel.mean.ravel().tolist() == [1.5, 2.0, 0.25]
    whole = Normalise.from_manifest(MANIFEST, tmp_path, mean="image", scale=2.0)
    np.testing.assert_array_equal(whole.mean, image)
    assert whole.scale == 2.0


def test_channel_mean_of_plain_vectors(tmp_path):
    vector = replace(MANIFEST, input=replace(MANIFEST.input, shape=(3,)))
    normalise = Normalise.from_manifest(vector, tmp_path, mean="channel", scale=1.0)
    np.testing.assert_array_equal(normalise(np.array([[2, 2, 2]], np.uint8)), [[0.5, 0, 1.75]])


def test_missing_mean_image(tmp_path):
    with pytest.raises(DataError, match=r"mean.npy: cannot be read"):
        Normalise.from_manifest(MANIFEST, tmp_path, mean="image", scale=1.0)


@pytest.mark.parametrize("mean", MEANS)
def test_round_trip_through_arrays(mean):
    images = random_rows(3, (3, 4, 5))[0]
    made = Normalise(mean=MEANS[mean], scale=1 / 3)
    again = Normalise.from_arrays(made.to_arrays())
    assert again.scale == made.scale
    np.testing.assert_array_equal(again(images), made(images))


@pytest.mark.parametrize("arrays", [{}, {"mean": np.zeros(1)}, {"scale": np.ones(()), "std": np.ones(1)}])
def test_other_arrays_are_refused(arrays):
    with pytest.raises(DataError, match=r"preprocessing arrays are \[.*\]; they must be scale"):
        Normalise.from_arrays(arrays)
