"""All weights of a module in one flat float32 buffer, so that a synchronisation is one all-reduce."""

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["CHUNK", "FOLD", "FlatWeights", "WeightsHash", "chunks"]

FOLD = 8192
"""Floats the hash folds onto; buffers are padded to a multiple of it."""
CHUNK = 16 * FOLD
"""Floats worked on at once (512 KiB): what one pass writes, the next pass finds in the processor's cache."""


class FlatWeights:
    """A module's float parameters and buffers as segments of one flat vector `local`.

    The vector holds the trainable parameters first, then frozen ones and float buffers (BatchNorm statistics).
    Float32 tensors on the CPU become views of it, so that training writes into it directly; others are copied
    by `gather` and `scatter`. Integer buffers stay outside, in `counters`.

    Attributes:
        local: float32 [size], the module's current weights.
        trainable: how many leading floats are trainable parameters.
        counters: the module's integer buffers.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = list(module.parameters())
        buffers = list(module.buffers())
        # Trainable ones first: the outer optimiser then works on the beginning of the vector.
        tensors = [p for p in parameters if p.requires_grad]
        self.trainable = sum(t.numel() for t in tensors)
        tensors += [p for p in parameters if not p.requires_grad]
        tensors += [b for b in buffers if b.is_floating_point()]
        self.counters = [b for b in buffers if not b.is_floating_point()]
        size = sum(t.numel() for t in tensors)
        # The padding is 0 on every replica and stays so in every average: it must not make hashes differ.
        self.local = torch.zeros(math.ceil(size / FOLD) * FOLD)
        self._copied: list[tuple[Tensor, Tensor]] = []
        offset = 0
        with torch.no_grad():
            for tensor in tensors:
                segment = _segment(self.local, offset, tensor)
                segment.copy_(tensor)
                if tensor.dtype == torch.float32 and tensor.device.type == "cpu":
                    # Through .data the parameter stays the object that autograd and the optimiser know.
                    tensor.data = segment
                else:
                    self._copied.append((segment, tensor))
                offset += tensor.numel()

    def gather(self) -> None:
        """Bring tensors that are no views into `local`."""
        with torch.no_grad():
            for segment, tensor in self._copied:
                segment.copy_(tensor)

    def scatter(self) -> None:
        """Bring `local` into tensors that are no views."""
        with torch.no_grad():
            for segment, tensor in self._copied:
                tensor.copy_(segment)

    def read_counters(self) -> Tensor:
        """All integer buffers as one int64 vector."""
        if not self.counters:
            return torch.empty(0, dtype=torch.int64)
        return torch.cat([counter.reshape(-1).to(torch.int64) for counter in self.counters])

    def write_counters(self, values: Tensor) -> None:
        """Set all integer buffers from one int64 vector, as `read_counters` gave it."""
        offset = 0
        for counter in self.counters:
            counter.copy_(values[offset : offset + counter.numel()].view_as(counter))
            offset += counter.numel()


def _segment(flat: Tensor, offset: int, like: Tensor) -> Tensor:
    """A view of `flat` at `offset`, with the strides of `like` (channels-last stays channels-last)."""
    probe = torch.empty_like(like, device="meta")  # dense strides that keep the memory format
    return flat.as_strided(probe.size(), probe.stride(), offset)


def chunks(*vectors: Tensor, start: int = 0, stop: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Cut equally long vectors into the same cache-sized pieces."""
    end = vectors[0].numel() if stop is None else stop
    for at in range(start, end, CHUNK):
        yield tuple(vector[at : min(at + CHUNK, end)] for vector in vectors)


class WeightsHash:
    """A hash of a flat vector, made piece by piece while the pieces are in cache.

    The bits are folded by integer addition onto 32 KiB, and those are hashed: it tells apart replicas that
    drifted or were damaged, at the speed of memory. It is no protection against forgery.
    """

    def __init__(self) -> None:
        self._fold = torch.zeros(FOLD // 2, dtype=torch.int64)

    def add(self, piece: Tensor) -> None:
        """Add a float32 piece whose length is a multiple of `FOLD`."""
        # Two floats at a time as one integer. Sums that wrap round do not depend on the order or the cutting of the
        # pieces, which a float sum would; and nan counts by its bits.
        self._fold += piece.view(torch.int64).view(-1, FOLD // 2).sum(0)

    def hex(self) -> str:
        """16 hexadecimal digits."""
        return hashlib.blake2b(self._fold.numpy().tobytes(), digest_size=8).hexdigest()

    @classmethod
    def of(cls, vector: Tensor) -> str:
        """The hash of a whole vector."""
        folded = cls()
        for (piece,) in chunks(vector):
            folded.add(piece)
        return folded.hex()
