"""Caffe's blobs in protobuf files, to and from arrays (blob.cpp: FromProto, ToProto)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparknet.caffe.schema import BlobProto, LooseBlobProto
from sparknet.errors import NetError

__all__ = ["Array", "array_of", "blob_of"]

Array = NDArray[np.floating[Any]]
"""float32, or float64 where a file holds double precision."""

_LEGACY_AXES = ("num", "channels", "height", "width")


def array_of(blob: BlobProto, pieces: Sequence[memoryview] | None = None) -> Array:
    """Return a blob's numbers, read-only, without copying them where they are packed, as Caffe writes them.

    A blob with the legacy axes (num, channels, height, width) has four of them, whatever it stands for.

    Args:
        blob: the message.
        pieces: where `wire.cut_numbers` has put the packed numbers; the message then holds their indices.

    Raises:
        NetError: there are not as many numbers as its shape says.
    """
    # blob.cpp, FromProto: double precision first, where a file has both.
    shape = _shape(blob)
    chunks: Sequence[bytes | memoryview] = blob.double_data or blob.data
    if chunks and pieces is not None:
        chunks = [pieces[int.from_bytes(chunk, "little")] for chunk in chunks]
    if chunks:
        packed = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        dtype = np.dtype("<f8" if blob.double_data else "<f4")
        if len(packed) % dtype.itemsize:
            raise NetError(
                f"its numbers are {len(packed)} bytes, and each takes {dtype.itemsize}: the file is damaged"
            )
        numbers = np.frombuffer(packed, dtype)
    else:
        numbers = _single(blob)
    if not shape and numbers.size != 1:
        shape = numbers.shape  # a file without shapes: the net's own will be held against it
    # Held against what is there, never allocated from what the shape claims.
    if numbers.size != math.prod(shape) or any(size < 0 for size in shape):
        raise NetError(f"its shape {shape} asks for {math.prod(shape)} numbers and there are {numbers.size}")
    return numbers.reshape(shape)


def blob_of(array: Array) -> BlobProto:
    """Return the blob that Caffe would write: float32 as `data`, float64 as `double_data`; no axes, no shape."""
    blob = BlobProto()
    if not array.size:
        pass  # protobuf writes no empty list
    elif array.dtype == np.float64:
        blob.double_data.append(array.astype("<f8", copy=False).tobytes())
    else:
        blob.data.append(array.astype("<f4", copy=False).tobytes())
    if array.shape:
        blob.shape.dim.extend(array.shape)
    return blob


def _shape(blob: BlobProto) -> tuple[int, ...]:
    # blob.cpp, FromProto: one of the four is enough to make it a blob of the old form.
    if any(blob.HasField(axis) for axis in _LEGACY_AXES):
        return blob.num, blob.channels, blob.height, blob.width
    return tuple(blob.shape.dim)


def _single(blob: BlobProto) -> Array:
    """Numbers with a field for each, which are unknown fields to a schema that takes them as packed."""
    loose = LooseBlobProto.FromString(blob.SerializeToString())
    if loose.double_data:
        return np.fromiter(loose.double_data, np.float64, len(loose.double_data))
    return np.fromiter(loose.data, np.float32, len(loose.data))
