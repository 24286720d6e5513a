"""Arrays on their way to the device: copied while it is at work on the step before."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["CudaStaging", "HostStaging", "Staging", "as_tensor"]


class Staging(Protocol):
    """Brings the columns of a batch to where they are needed."""

    def send(self, columns: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Tensors of the same dtypes and shapes; the arrays may be written over afterwards."""
        ...


class HostStaging:
    """Devices that share the host's memory, or that copy in their own good time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def send(self, columns: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """As the Protocol says."""
        return {name: as_tensor(values).to(self._device) for name, values in columns.items()}


class CudaStaging:
    """By way of page-locked memory, on a stream of its own.

    The host is a step ahead of a GPU: it sends the next batch while the kernels of the step before still run, and
    these are not held up, as they would be by a copy on their own stream. Two sets of page-locked buffers take
    turns, since a copy may still read the one when the next batch comes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers: list[dict[str, Tensor]] = [{}, {}]
        self._copied = [torch.cuda.Event(), torch.cuda.Event()]
        self._turn = 0

    def send(self, columns: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """As the Protocol says; the tensors are for the current stream."""
        self._turn = 1 - self._turn
        buffers, copied = self._buffers[self._turn], self._copied[self._turn]
        # Of the batch before the last, which had the same buffers.
        copied.synchronize()
        current, sent = torch.cuda.current_stream(self._device), dict[str, Tensor]()
        with torch.cuda.stream(self._stream):
            for name, values in columns.items():
                pinned = self._pinned(buffers, name, as_tensor(values))
                sent[name] = pinned.to(self._device, non_blocking=True)
                # It was allocated for this stream: without a word the allocator would give its memory away while
                # the step on the other one still reads it.
                sent[name].record_stream(current)
            copied.record(self._stream)
        # The step waits for its batch, the host does not.
        current.wait_event(copied)
        return sent

    @staticmethod
    def _pinned(buffers: dict[str, Tensor], name: str, values: Tensor) -> Tensor:
        """The values in page-locked memory, which takes longer to make than to fill."""
        held = buffers.get(name)
        if held is None or held.dtype != values.dtype or held.numel() < values.numel():
            held = buffers[name] = torch.empty(values.numel(), dtype=values.dtype, pin_memory=True)
        return held[: values.numel()].view(values.shape).copy_(values)


def as_tensor(values: np.ndarray) -> Tensor:
    """An array as a tensor on the CPU, over the same memory where it may be written."""
    # Tables may give views of files, which cannot be written: torch has no such tensors.
    return torch.from_numpy(values if values.flags.writeable else values.copy())
