"""From rows to the tensors of a step, where the weights are."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sparknet.data.loading.loader import Batch
from sparknet.data.loading.transform import Normalise
from sparknet.training.objectives.objective import Objective
from sparknet.training.worker.device_transform import DeviceNormalise
from sparknet.training.worker.staging import CudaStaging, HostStaging

__all__ = ["DeviceFeed"]


class DeviceFeed:
    """Divides the preprocessing between the loader's threads and the device, and brings rows there.

    Args:
        chain: by column what its values go through; None: nothing is left to be done.
        device: of the weights.

    Attributes:
        for_loaders: what loaders are to do; None: nothing.
    """

    def __init__(self, chain: Mapping[str, Normalise] | None, device: torch.device) -> None:
        self.device = device
        # On a CPU the loader's threads preprocess beside the step. Elsewhere stored rows are sent, bytes as a rule,
        # a fourth of the float32 that they become, and the host's cores are left to decoding.
        on_host = device.type == "cpu"
        self.for_loaders = chain if on_host else None
        left = {} if on_host or chain is None else chain
        self._normalise = {name: DeviceNormalise(normalise, device) for name, normalise in left.items()}
        self._staging = CudaStaging(device) if device.type == "cuda" else HostStaging(device)

    @classmethod
    def of(cls, objective: Objective, chain: Mapping[str, Normalise] | None) -> "DeviceFeed":
        """The feed of an objective."""
        parameter = next(objective.module.parameters(), None)
        return cls(chain, torch.device("cpu") if parameter is None else parameter.device)

    def batch(self, batch: Batch) -> dict[str, Tensor]:
        """The columns [n, *shape] of a loader that was given `for_loaders`, as the net takes them."""
        return self._on_device(batch.columns, batch.draws)

    def rows(self, columns: Mapping[str, np.ndarray], draws: np.ndarray) -> dict[str, Tensor]:
        """The same of stored rows that came by another way, with their draws."""
        if self.for_loaders is not None:
            done = {name: normalise(columns[name], draws) for name, normalise in self.for_loaders.items()}
            columns = {**columns, **done}
        return self._on_device(columns, draws)

    def _on_device(self, columns: Mapping[str, np.ndarray], draws: np.ndarray | None) -> dict[str, Tensor]:
        tensors = self._staging.send(columns)
        for name, normalise in self._normalise.items():
            tensors[name] = normalise(tensors[name], draws)
        return tensors
