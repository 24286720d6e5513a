"""Tensors as the bytes of a safetensors file, without keeping the interpreter to itself.

The library's own `save` and `load` hold the interpreter's lock from beginning to end, for weights of 1 GB longer
than a heartbeat may be late. Here each tensor is copied by torch, which lets go of it. The format is eight bytes of
the header's length, little endian, the header as JSON (by name dtype, shape and place), and the tensors' memory
(https://github.com/huggingface/safetensors, "Format").
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparknet.errors import CheckpointError

__all__ = ["Bytes", "dump_tensors", "load_tensors"]

Bytes = bytes | bytearray | memoryview
"""What may be read without being copied."""

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


def dump_tensors(tensors: Mapping[str, Tensor], *, before: bytes = b"") -> memoryview:
    """The tensors, from wherever they are, as a safetensors file.

    Args:
        tensors: by name.
        before: put in front of it, filled up with blanks so that what follows lies aligned.
    """
    ordered = sorted(tensors.items(), key=lambda one: (-one[1].element_size(), one[0]))
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
    begin = _filled_up(before) + len(text).to_bytes(8, "little") + text
    buffer = torch.empty(len(begin) + at, dtype=torch.uint8)
    buffer[: len(begin)] = torch.frombuffer(bytearray(begin), dtype=torch.uint8)
    for name, tensor in ordered:
        start, stop = header[name]["data_offsets"]
        if start < stop:
            place = buffer[len(begin) + start : len(begin) + stop].view(tensor.dtype)
            place.view(tensor.shape).copy_(tensor.detach())
    return buffer.numpy().data


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
