"""Rows of images on their way into Arrow record batches: bare pixels, or files with names that may be damaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = [
    "IMAGE_SUFFIXES",
    "LARGEST_IMAGE",
    "NAMED_IMAGES",
    "NamedRow",
    "NamedRows",
    "binary_array",
    "pixel_batch",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""How the names of image files end, in small letters."""
LARGEST_IMAGE = 256 << 20
"""Bytes; what is larger is no image that a net is trained on."""
NAMED_IMAGES = pa.schema(
    [("name", pa.string()), ("image", pa.binary()), ("label", pa.int64()), ("error", pa.string())]
)
"""Columns of the batches: `image` and `label` are null where `error` says what is wrong."""
_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedRow:
    """One image with its label, or what is wrong with it."""

    name: str
    """What the source calls it."""
    image: bytes | memoryview | None = None
    """The file; None where it is damaged."""
    label: int | None = None
    """Its class; None where it is damaged."""
    error: str | None = None
    """Where the row is and what is wrong with it; None if nothing is."""

    @property
    def bytes(self) -> int:
        """Bytes of the image."""
        return 0 if self.image is None else len(self.image)


class NamedRows:
    """Collects rows and makes record batches of some 8 MB of them."""

    def __init__(self) -> None:
        self._rows = list[NamedRow]()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def has_room(self, row: NamedRow) -> bool:
        """Tell whether the row fits into the batch; the first one always does."""
        # Bounded by bytes and by rows: an archive of thumbnails would make batches of a million names.
        return not self._rows or (len(self) < _BATCH_ROWS and self._bytes + row.bytes <= _BATCH_BYTES)

    def append(self, row: NamedRow) -> None:
        """Add a row."""
        self._rows.append(row)
        self._bytes += row.bytes

    def take(self) -> pa.RecordBatch:
        """Make the batch, of schema `NAMED_IMAGES`, and begin another. It owns its bytes."""
        rows, self._rows, self._bytes = self._rows, [], 0
        images = binary_array([row.image for row in rows])
        columns = [[row.name for row in rows], images, [row.label for row in rows], [row.error for row in rows]]
        return pa.record_batch(columns, schema=NAMED_IMAGES)


def pixel_batch(pixels: np.ndarray, labels: np.ndarray) -> pa.RecordBatch:
    """Rows of pixels as the columns `image` binary and `label` int64; C-contiguous arrays are not copied.

    Args:
        pixels: uint8 [n, ...].
        labels: int64 [n].
    """
    flat = np.ascontiguousarray(pixels).reshape(-1)
    width = flat.size // len(labels)
    # Built from buffers: the pixels lie there already, end to end, as Arrow wants them.
    offsets = np.arange(len(labels) + 1, dtype=np.int32) * np.int32(width)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(flat)]
    images = pa.Array.from_buffers(pa.binary(), len(labels), buffers)
    return pa.RecordBatch.from_arrays([images, pa.array(labels)], names=["image", "label"])


def binary_array(values: Sequence[bytes | memoryview | None]) -> Any:
    """Lay values end to end in an Arrow array of binary; None becomes null.

    Each is copied once; `pa.array` copies them again whenever it grows.
    """
    sizes = [0 if value is None else len(value) for value in values]
    offsets = np.zeros(len(values) + 1, np.int32)
    # 32 bits suffice: a batch is 8 MB, or a single image of at most 256 MB.
    np.cumsum(sizes, out=offsets[1:])
    data = pa.allocate_buffer(int(offsets[-1]))
    target = memoryview(data).cast("B")
    for value, start, size in zip(values, offsets.tolist(), sizes, strict=False):
        if value is not None:
            target[start : start + size] = value
    # Arrow packs the bits itself; the buffer behind an array of booleans is such a bitmap.
    valid = pa.array([value is not None for value in values], pa.bool_()).buffers()[1]
    return pa.Array.from_buffers(pa.binary(), len(values), [valid, pa.py_buffer(offsets), data])
