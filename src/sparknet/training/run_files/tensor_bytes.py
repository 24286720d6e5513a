"""Tensors as the bytes of a safetensors file, without keeping the interpreter to itself.

The library's own `save` and `load` hold the interpreter's lock from beginning to end, for weights of 1 GB longer
than a heartbeat may be late. Here torch copies a piece at a time and lets go of the lock meanwhile, and of weights
of any size one piece is held beside them. The format is eight bytes of the header's length, little endian, the
header as JSON (by name dtype, shape and place), and the tensors' memory
(https://github.com/huggingface/safetensors, "Format").
"""

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparknet.errors import CheckpointError
from sparknet.training.sync.pieces import Bytes

__all__ = ["TensorFile", "dump_tensors", "empty_bytes", "load_tensors", "read_bytes"]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNED = 8
"""No dtype needs more; behind a header of such a length, and one after the other by size, all lie aligned."""


class TensorFile:
    """Tensors, from wherever they are, as a safetensors file whose bytes are made when they are asked for.

    Args:
        tensors: by name; they must stay as they are until the last piece was taken.
        before: put in front of it, filled up with blanks so that what follows lies aligned.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, before: bytes = b"") -> None:
        # The widest first, so that all lie aligned; and by name, so that equal tensors are equal files.
        ordered = sorted(tensors.items(), key=lambda one: (-one[1].element_size(), one[0]))
        self._tensors = [tensor for _, tensor in ordered]
        header: dict[str, Any] = {}
        at = 0
        for name, tensor in ordered:
            stop = at + tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [at, stop],
            }
            at = stop
        text = _filled_up(json.dumps(header).encode())
        self._begin = _filled_up(before) + len(text).to_bytes(8, "little") + text
        self._size = len(self._begin) + at

    def __len__(self) -> int:
        """Bytes of the file."""
        return self._size

    def pieces(self, most_bytes: int) -> Iterator[memoryview]:
        """All bytes in order, each piece but the last of `most_bytes`; it holds until the next is asked for."""
        piece = torch.empty(min(most_bytes, self._size), dtype=torch.uint8)
        filled = 0
        for run in self._runs():
            at = 0
            while at < run.numel():
                count = min(piece.numel() - filled, run.numel() - at)
                piece[filled : filled + count].copy_(run[at : at + count])
                at, filled = at + count, filled + count
                if filled == piece.numel():
                    yield piece.numpy().data
                    filled = 0
        if filled:
            yield piece[:filled].numpy().data

    def whole(self) -> memoryview:
        """All bytes at once."""
        return next(self.pieces(self._size))

    def _runs(self) -> Iterator[Tensor]:
        """The file's parts as uint8 vectors, the tensors' own memory where it lies in order."""
        yield torch.frombuffer(bytearray(self._begin), dtype=torch.uint8)
        for tensor in self._tensors:
            # One tensor that is turned or channels-last is put in order by a copy, which goes before the next.
            yield tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def dump_tensors(tensors: Mapping[str, Tensor], *, before: bytes = b"") -> memoryview:
    """All bytes of a `TensorFile` at once."""
    return TensorFile(tensors, before=before).whole()


def empty_bytes(size: int) -> memoryview:
    """Memory to be written, which goes back to the system with its last view.

    A `bytearray` would be filled with zeros under the interpreter's lock, and a worker's heap keeps what is freed.
    """
    return memoryview(mmap.mmap(-1, max(1, size)))[:size]


def read_bytes(path: Path) -> memoryview:
    """A file in memory that may be written, which `load_tensors` then need not copy.

    Raises:
        OSError: it cannot be read, or was cut short meanwhile.
    """
    with path.open("rb") as file:
        data = empty_bytes(path.stat().st_size)
        if file.readinto(data) != len(data):
            raise OSError(f"{path} was cut short while it was read; it must stay as it is: try again")
    return data


def load_tensors(data: Bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as views of its bytes.

    Raises:
        CheckpointError: the bytes are damaged.
    """
    view = memoryview(data)
    try:
        length = int.from_bytes(view[:8], "little")
        if len(view) < 8 or 8 + length > len(view):
            raise ValueError("the header is cut short")
        header: dict[str, Any] = json.loads(bytes(view[8 : 8 + length]))
        header.pop("__metadata__", None)
        body = view[8 + length :]
        ends = [stop for _, stop in (entry["data_offsets"] for entry in header.values())]
        if max(ends, default=0) != len(body):
            raise ValueError(f"{len(body)} bytes follow the header, and it tells of {max(ends, default=0)}")
        return {name: _tensor(body, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{len(view)} bytes of saved tensors are damaged: {error}") from error


def _tensor(body: memoryview, entry: Mapping[str, Any]) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
    start, stop = (int(edge) for edge in entry["data_offsets"])
    if not 0 <= start <= stop <= len(body) or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"bytes {start} to {stop} are no {entry['dtype']} of shape {shape}")
    if start == stop:
        return torch.empty(shape, dtype=dtype)
    piece = body[start:stop]
    # torch wants memory that may be written, though nobody writes into this.
    return torch.frombuffer(bytearray(piece) if piece.readonly else piece, dtype=dtype).view(shape)


def _filled_up(text: bytes) -> bytes:
    return text + b" " * (-len(text) % _ALIGNED)
