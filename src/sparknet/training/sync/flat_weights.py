"""All weights of a module in one flat float32 buffer, so that a synchronisation is one all-reduce."""

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparknet.training.sync.mirror import Mirror

__all__ = ["CHUNK", "FOLD", "TRANSFER", "FlatWeights", "WeightsHash", "chunks"]

FOLD = 8192
"""Floats the hash folds onto; buffers are padded to a multiple of it."""
CHUNK = 16 * FOLD
"""Floats worked on at once (512 KiB): what one pass writes, the next pass finds in the processor's cache."""
TRANSFER = 16 * CHUNK
"""Floats that go between a device and the host at once (8 MiB): long enough for the bus, short beside the rest."""


class FlatWeights:
    """A module's float parameters and buffers as segments of one flat vector, on the device that holds them.

    The vector holds the trainable parameters first, then frozen ones and float buffers (BatchNorm statistics).
    Float32 tensors become views of it, so that training writes into it directly; others are copied by `gather` and
    `scatter`. Where the device is not the host, `local` is the host's copy of it, brought and sent by the same two.
    Integer buffers stay outside, in `counters`.

    Args:
        module: whose tensors are taken; they must be on one device.
        mirror: keep a copy for the host although the device is the host.

    Attributes:
        flat: float32 [size], where the module lives.
        local: float32 [size] on the host, the module's current weights; `flat` itself where nothing is mirrored.
        trainable: how many leading floats are trainable parameters.
        counters: the module's integer buffers.
    """

    def __init__(self, module: nn.Module, *, mirror: bool = False) -> None:
        parameters = list(module.parameters())
        buffers = list(module.buffers())
        # Trainable ones first: the outer optimiser then works on the beginning of the vector.
        tensors = [p for p in parameters if p.requires_grad]
        self.trainable = sum(t.numel() for t in tensors)
        tensors += [p for p in parameters if not p.requires_grad]
        tensors += [b for b in buffers if b.is_floating_point()]
        self.counters = [b for b in buffers if not b.is_floating_point()]
        size = sum(t.numel() for t in tensors)
        device = tensors[0].device if tensors else torch.device("cpu")
        # The padding is 0 on every replica and stays so in every average: it must not make hashes differ.
        self.flat = torch.zeros(math.ceil(size / FOLD) * FOLD, device=device)
        self._copied: list[tuple[Tensor, Tensor]] = []
        offset = 0
        with torch.no_grad():
            for tensor in tensors:
                segment = _segment(self.flat, offset, tensor)
                segment.copy_(tensor)
                if _may_move(tensor, device):
                    # Through .data the parameter stays the object that autograd and the optimiser know.
                    tensor.data = segment
                else:
                    self._copied.append((segment, tensor))
                offset += tensor.numel()
        self._mirror = Mirror(self.flat) if mirror or device.type != "cpu" else None
        self.local = self.flat if self._mirror is None else self._mirror.host
        length = TRANSFER if self._mirror else max(1, self.flat.numel())
        self._pieces = [slice(*edges) for edges in _edges(self.flat.numel(), length)]

    def gather(self) -> None:
        """Bring the module's weights into `local`."""
        for _ in self.gathered():
            pass

    def gathered(self) -> Iterator[slice]:
        """Bring the module's weights into `local`; each piece is given once it is there, in order."""
        with torch.no_grad():  # left before a piece is given, else the caller's own work would be in it
            for segment, tensor in self._copied:
                segment.copy_(tensor)
        # A device goes on copying while the caller works on a piece.
        yield from self._pieces if self._mirror is None else self._mirror.bring(self._pieces)

    def scatter(self) -> None:
        """Bring `local` into the module."""
        for _ in self.scattered():
            pass

    def scattered(self) -> Iterator[slice]:
        """Let the caller change `local` by pieces; each is brought into the module when the next is asked for."""
        for piece in self._pieces:
            yield piece
            if self._mirror is not None:
                self._mirror.send(piece)
        if self._mirror is not None:
            self._mirror.settle()
        with torch.no_grad():
            for segment, tensor in self._copied:
                tensor.copy_(segment)

    def read_counters(self) -> Tensor:
        """All integer buffers as one int64 vector on the host."""
        if not self.counters:
            return torch.empty(0, dtype=torch.int64)
        return torch.cat([counter.reshape(-1).to(torch.int64) for counter in self.counters]).cpu()

    def write_counters(self, values: Tensor) -> None:
        """Set all integer buffers from one int64 vector, as `read_counters` gave it."""
        offset = 0
        for counter in self.counters:
            counter.copy_(values[offset : offset + counter.numel()].view_as(counter))
            offset += counter.numel()


def _may_move(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor can become a segment of the flat vector on a device."""
    if tensor.dtype != torch.float32 or tensor.device != device:
        return False
    # On a GPU, weights that share their memory are an RNN's, which cuDNN wants in an order of its own: moved out of
    # it, they would be put together anew at every step.
    return device.type == "cpu" or tensor.untyped_storage().nbytes() == tensor.nbytes


def _segment(flat: Tensor, offset: int, like: Tensor) -> Tensor:
    """A view of `flat` at `offset`, with the strides of `like` (channels-last stays channels-last)."""
    probe = torch.empty_like(like, device="meta")  # dense strides that keep the memory format
    return flat.as_strided(probe.size(), probe.stride(), offset)


def chunks(*vectors: Tensor, start: int = 0, stop: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Cut equally long vectors into the same cache-sized pieces."""
    end = vectors[0].numel() if stop is None else stop
    for begin, finish in _edges(end, CHUNK, start=start):
        yield tuple(vector[begin:finish] for vector in vectors)


def _edges(stop: int, length: int, *, start: int = 0) -> Iterator[tuple[int, int]]:
    for at in range(start, stop, length):
        yield at, min(at + length, stop)


class WeightsHash:
    """A hash of a flat vector, made piece by piece while the pieces are in cache.

    The bits are folded by integer addition onto 32 KiB, and those are hashed: it tells apart replicas that
    drifted or were damaged, at the speed of memory. It is no protection against forgery. Integers add up alike on
    every device.

    Args:
        device: where the pieces are.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._fold = torch.zeros(FOLD // 2, dtype=torch.int64, device=device)

    def add(self, piece: Tensor) -> None:
        """Add a float32 piece whose length is a multiple of `FOLD`."""
        # Two floats at a time as one integer. Sums that wrap round do not depend on the order or the cutting of the
        # pieces, which a float sum would; and nan counts by its bits.
        self._fold += piece.view(torch.int64).view(-1, FOLD // 2).sum(0)

    def hex(self) -> str:
        """16 hexadecimal digits."""
        return hashlib.blake2b(self._fold.cpu().numpy().tobytes(), digest_size=8).hexdigest()

    @classmethod
    def of(cls, vector: Tensor) -> str:
        """The hash of a whole vector."""
        folded = cls(vector.device)
        for (piece,) in chunks(vector):
            folded.add(piece)
        return folded.hex()
