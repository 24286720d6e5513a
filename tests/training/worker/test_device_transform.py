"""Preprocessing on the device is that of the CPU, bit for bit. On CUDA where there is one, else on torch's CPU."""

import numpy as np
import pytest
import torch

from formats import random_rows
from sparknet.data.loading.row_random import row_draws
from sparknet.data.loading.transform import Normalise
from sparknet.errors import DataError
from sparknet.training.worker.device_transform import DeviceNormalise
from sparknet.training.worker.staging import as_tensor

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_CUDA)]
ROWS = 37
RANDOM = np.random.default_rng(0)
MEANS = {
    "none": None,
    "one": np.array([101.7], np.float32).reshape(1, 1, 1),
    "channel": np.array([103.94, 116.78, 123.68], np.float32).reshape(3, 1, 1),
    "image": RANDOM.random((3, 40, 50), np.float32) * 255,
}
STDS = {"none": None, "channel": np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)}
CUTS = {
    "whole": {},
    "mirrored": {"mirror": True},
    "centre": {"crop": 31},
    "random": {"crop": 31, "cut": "random"},
    "random and mirrored": {"crop": 31, "cut": "random", "mirror": True},
    "as large as the image": {"crop": 40, "cut": "random", "mirror": True},
}


def both(normalise, images, draws, device):
    expected = normalise(images, draws)
    got = DeviceNormalise(normalise, torch.device(device))(as_tensor(images).to(torch.device(device)), draws)
    assert got.device.type == device
    assert got.dtype == torch.float32
    return got.cpu().numpy(), expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("cut", CUTS)
def test_the_same_bits(device, mean, std, cut):
    images, draws = random_rows(ROWS, (3, 40, 50))[0], row_draws(4, 2, np.arange(ROWS))
    for scale in (1.0, 0.017):
        normalise = Normalise(mean=MEANS[mean], scale=scale, std=STDS[std], **CUTS[cut])
        got, expected = both(normalise, images, draws, device)
        np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("device", DEVICES)
def test_large_rows_and_floats(device):
    images = random_rows(5, (3, 150, 170))[0].astype(np.float32) * np.float32(1.37)
    mean = RANDOM.random((3, 150, 170), np.float32)
    normalise = Normalise(mean=mean, scale=1 / 255, crop=128, cut="random", mirror=True)
    got, expected = both(normalise, images, row_draws(0, 0, np.arange(5)), device)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_that_are_no_images(device):
    vectors = random_rows(6, (11,))[0]
    mean, std = RANDOM.random(11, np.float32), RANDOM.random(11, np.float32) + 1
    got, expected = both(Normalise(mean=mean, scale=2.0, std=std), vectors, None, device)
    np.testing.assert_array_equal(got, expected)


def test_the_stored_rows_stay_as_they_are():
    images = random_rows(4, (3, 8, 8))[0].astype(np.float32)
    tensor = torch.from_numpy(images.copy())
    DeviceNormalise(Normalise(mean=None, scale=0.5), torch.device("cpu"))(tensor)
    np.testing.assert_array_equal(tensor.numpy(), images)


def test_a_square_that_is_too_large():
    cut = DeviceNormalise(Normalise(mean=None, scale=1.0, crop=9), torch.device("cpu"))
    with pytest.raises(DataError, match=r"9 and the images are 8x8"):
        cut(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("device", DEVICES)
def test_views_of_files_can_be_copied_to_it(device):
    values = np.arange(5)
    values.flags.writeable = False
    assert as_tensor(values).to(torch.device(device)).tolist() == [0, 1, 2, 3, 4]
