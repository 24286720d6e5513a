"""From rows to the tensors of a step, where the weights are."""

import numpy as np
import torch
from torch import Tensor

from sparknet.data.loading.loader import Batch
from sparknet.data.loading.transform import Normalise
from sparknet.training.objectives.objective import Objective
from sparknet.training.worker.device_transform import DeviceNormalise, to_device

__all__ = ["DeviceFeed"]


class DeviceFeed:
    """Divides the preprocessing between the loader's threads and the device.

    Args:
        normalise: what rows go through; None where they have gone through it.
        device: of the weights.

    Attributes:
        for_loaders: what loaders are to do; None: nothing.
    """

    def __init__(self, normalise: Normalise | None, device: torch.device) -> None:
        self.device = device
        # On a CPU the loader's threads preprocess beside the step. Elsewhere stored rows are sent, bytes as a rule,
        # a fourth of the float32 that they become, and the host's cores are left to decoding.
        on_host = device.type == "cpu"
        self.for_loaders = normalise if on_host else None
        self._normalise = None if on_host or normalise is None else DeviceNormalise(normalise, device)

    @classmethod
    def of(cls, objective: Objective, normalise: Normalise | None) -> "DeviceFeed":
        """The feed of an objective."""
        parameter = next(objective.module.parameters(), None)
        return cls(normalise, torch.device("cpu") if parameter is None else parameter.device)

    def batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images float32 [n, *shape] and labels int64 [n] of a loader that was given `for_loaders`."""
        return self._on_device(batch.images, batch.labels, batch.draws)

    def rows(self, images: np.ndarray, labels: np.ndarray, draws: np.ndarray) -> tuple[Tensor, Tensor]:
        """The same of stored rows that came by another way, with their draws."""
        if self.for_loaders is not None:
            images = self.for_loaders(images, draws)
        return self._on_device(images, labels, draws)

    def _on_device(self, images: np.ndarray, labels: np.ndarray, draws: np.ndarray | None) -> tuple[Tensor, Tensor]:
        inputs = to_device(images, self.device)
        if self._normalise is not None:
            inputs = self._normalise(inputs, draws)
        return inputs, to_device(labels, self.device)
