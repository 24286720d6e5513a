"""What `data.loading.transform` does, where the weights are: bytes go to the device, and are cut there.

The results are those of the CPU to the last bit: the same windows, and one float32 operation after the other.

Tests hold it against the CPU's on torch's CPU device, and on CUDA where they find one. There was none when this was
written: on a GPU it has yet to be seen.
"""

import numpy as np
import torch
from torch import Tensor

from sparknet.data.loading.transform import Normalise, Windows
from sparknet.training.worker.staging import as_tensor

__all__ = ["DeviceNormalise"]


class DeviceNormalise:
    """`Normalise` as operations of torch.

    Args:
        normalise: what is done.
        device: where.
    """

    def __init__(self, normalise: Normalise, device: torch.device) -> None:
        self._normalise = normalise
        self._device = device
        mean, factor = normalise.mean, normalise.factor
        self._mean = None if mean is None else as_tensor(mean).to(device)
        self._factor = None if factor is None else as_tensor(factor).to(device)

    def __call__(self, images: Tensor, draws: np.ndarray | None = None) -> Tensor:
        """Turn stored rows into what the net is given.

        Args:
            images: uint8 or float32 [n, *shape] on the device; [n, channels, height, width] where something is cut
                or mirrored.
            draws: random numbers of each row, uint32 [n, 4]; needed for random cuts and mirroring.

        Returns:
            New float32 [n, *shape], or [n, channels, crop, crop], on the device.

        Raises:
            DataError: a square of this size cannot be cut out.
        """
        normalise, stored = self._normalise, tuple(images.shape[1:])
        shape = normalise.row_shape(stored)
        windows = normalise.windows(tuple(images.shape), draws)
        mean, at = self._mean, None
        if shape != stored or normalise.mirror:
            # One gather for the whole batch; a slice for every row would start kernels by the hundred.
            at = self._places(windows, stored, shape)
            images = images[at]
            # The mean of a pixel goes where the pixel goes, mirrored too (Caffe's data_transformer.cpp).
            if mean is not None and normalise.mean_is_image(stored):
                mean = mean.expand(stored)[at[1:]]
        # A copy even of float32: the operations below work in place, and the caller keeps its rows.
        result = images.to(torch.float32, copy=True)
        if mean is not None:
            result -= mean
        if self._factor is not None:
            result *= self._factor
        return result

    def _places(self, windows: Windows, stored: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Indices of the windows' pixels, int64, that together broadcast to [n, channels, height, width]."""
        # One transfer in place of three.
        numbers = np.stack([windows.ys, windows.xs, windows.turned.astype(np.int64)])
        ys, xs, turned = as_tensor(numbers).to(self._device)
        rows, channels, lines, columns = (
            torch.arange(size, device=self._device) for size in (len(windows.ys), *shape)
        )
        across = xs[:, None] + torch.where(turned[:, None] == 1, shape[2] - 1 - columns, columns)
        return (
            rows[:, None, None, None],
            channels[:, None, None],
            (lines + ys[:, None])[:, None, :, None],
            across[:, None, None, :],
        )
