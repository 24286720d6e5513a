"""The host's copy of a flat vector on a device, copied in pieces while the host works on others."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Mirror"]


class Mirror:
    """Page-locked memory beside a device's vector, and a stream of its own for what goes between them.

    Everything that passes goes through that one stream, so that a piece never arrives before it has left. On a
    device without streams the same copies are made at once.

    Args:
        flat: the device's vector.

    Attributes:
        host: of the same length and dtype; it holds what was brought last.
    """

    def __init__(self, flat: Tensor) -> None:
        self._flat = flat
        self._stream = torch.cuda.Stream(flat.device) if flat.is_cuda else None
        self.host = torch.empty(flat.numel(), dtype=flat.dtype, pin_memory=flat.is_cuda)

    def bring(self, pieces: list[slice]) -> Iterator[slice]:
        """Copy from the device; each piece is given when it has arrived, while later ones still travel."""
        self._follow_device()
        arrivals: list[Any] = []
        with self._on_stream():
            for piece in pieces:
                self.host[piece].copy_(self._flat[piece], non_blocking=True)
                arrivals.append(self._stream.record_event() if self._stream else None)
        for piece, arrival in zip(pieces, arrivals, strict=True):
            if arrival is not None:
                arrival.synchronize()
            yield piece

    def send(self, piece: slice) -> None:
        """Begin to copy a piece to the device; the host must not change it before the next `bring` gave it."""
        self._follow_device()
        with self._on_stream():
            self._flat[piece].copy_(self.host[piece], non_blocking=True)

    def settle(self) -> None:
        """Let the device wait, and not the host, until all that was sent is there."""
        if self._stream is not None:
            torch.cuda.current_stream(self._flat.device).wait_stream(self._stream)

    def _follow_device(self) -> None:
        # Kernels that were launched before may still read or write the vector.
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._flat.device))

    def _on_stream(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
