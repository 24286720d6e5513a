"""Images that keep their own sizes: files, or pixels with their size before them, which are rows of bytes too."""

import struct

import numpy as np

from sparknet.data.rows.columns import ImageForm
from sparknet.data.rows.image_codec import decode, decode_stored
from sparknet.errors import BadImage, DataError

__all__ = ["SeveralSizes", "is_packed", "pack", "packed_among", "planes_of"]

_MAGIC = b"\x00pixels\xff"  # no image file begins so
_HEADER = struct.Struct("<8s3I")


class SeveralSizes(DataError):
    """Images that were taken to be of one size are not, and may be of several: they are to be read again so."""

    def __init__(self, column: str, example: str) -> None:
        super().__init__(f"column {column}: {example}")
        self.column = column
        self.example = example
        """Two images of other sizes."""


def pack(planes: np.ndarray) -> bytes:
    """Pixels, uint8 [channels, height, width], with their size."""
    return _HEADER.pack(_MAGIC, *planes.shape) + planes.tobytes()


def is_packed(cell: bytes | memoryview) -> bool:
    """Whether these bytes are what `pack` makes, by their beginning."""
    return bytes(cell[: len(_MAGIC)]) == _MAGIC


def packed_among(rows: np.ndarray) -> np.ndarray:
    """Which rows of bytes, uint8 [n, width], begin as `pack` makes them, bool [n]."""
    magic = np.frombuffer(_MAGIC, np.uint8)
    return (rows[:, : len(magic)] == magic).all(1) if rows.shape[1] >= len(magic) else np.zeros(len(rows), np.bool_)


def planes_of(cell: bytes | memoryview, *, form: ImageForm, channels: int) -> np.ndarray:
    """The pixels of a row, uint8 [channels, height, width]; a view where they are stored as pixels.

    Raises:
        BadImage: no image, a damaged one, or one of other channels.
    """
    if is_packed(cell):
        planes = _unpack(cell)
    elif form.as_stored:
        planes = decode_stored(cell, order=form.order).transpose(2, 0, 1)
    else:
        planes = decode(cell, channels=channels, order=form.order).transpose(2, 0, 1)
    if len(planes) != channels:
        raise BadImage(f"the image has {len(planes)} channels and {channels} are wanted: leave it out")
    return planes


def _unpack(cell: bytes | memoryview) -> np.ndarray:
    if len(cell) >= _HEADER.size:
        shape: tuple[int, ...] = _HEADER.unpack_from(cell)[1:]
        if min(shape) >= 1 and len(cell) == _HEADER.size + shape[0] * shape[1] * shape[2]:
            return np.frombuffer(cell, np.uint8, offset=_HEADER.size).reshape(shape)
    raise BadImage(f"{len(cell)} bytes that are not the pixels of the size before them: they are damaged")
