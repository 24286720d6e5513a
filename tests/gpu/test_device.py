"""What goes to a device and comes back: batches, preprocessing, weights."""

import numpy as np
import pytest
import torch

from sparknet.data.loading.transform import Normalise
from sparknet.training.worker.device_transform import DeviceNormalise
from sparknet.training.worker.staging import CudaStaging, HostStaging

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def batches(count: int):
    random = np.random.default_rng(0)
    for number in range(count):
        # The last one is shorter, as at the end of an epoch, and a later one longer again.
        rows = 5 if number == 3 else 16
        yield {
            "image": random.integers(0, 256, (rows, 3, 8, 8), np.uint8),
            "label": random.integers(0, 10, rows),
            "number": random.standard_normal((rows, 2)).astype(np.float32),
        }


def test_batches_arrive_as_they_were_sent() -> None:
    """Though each is sent while the device works on the one before, and its memory is used again."""
    device = torch.device("cuda")
    staging, plain = CudaStaging(device), HostStaging(torch.device("cpu"))
    busy = torch.randn(2048, 2048, device=device)
    kept: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []
    for batch in batches(12):
        for _ in range(4):
            busy = busy @ busy / 2048
        sent = {name: tensor.clone() for name, tensor in staging.send(batch).items()}
        kept.append((sent, {name: tensor.clone() for name, tensor in plain.send(batch).items()}))
        for values in batch.values():
            values[...] = 0  # the caller's own again
    for sent, expected in kept:
        for name, tensor in sent.items():
            assert torch.equal(tensor.cpu(), expected[name]), name


@pytest.mark.parametrize("crop", [0, 6])
def test_the_device_prepares_rows_as_the_host_does(crop: int) -> None:
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (32, 3, 8, 8), np.uint8)
    draws = random.integers(0, 2**32, (32, 4), np.uint32)
    normalise = Normalise(
        mean=random.random((3, 8, 8), np.float32) * 255, scale=0.017, crop=crop, cut="random", mirror=True
    )
    there = DeviceNormalise(normalise, torch.device("cuda"))(torch.from_numpy(images).cuda(), draws)
    assert torch.equal(there.cpu(), torch.from_numpy(normalise(images, draws)))
