"""What one column of the rows is: its name, its type, and how it lies in numpy and in Arrow."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sparknet.data.rows.ragged import Cells
from sparknet.errors import DataError

__all__ = [
    "ENCODED_IMAGE",
    "LABEL",
    "MOST_CLASSES",
    "Column",
    "ImageForm",
    "ImageHeader",
    "batch_of",
    "check_alike",
    "check_labels",
    "schema_of",
]

MOST_CLASSES = 1 << 20
"""Labels must be below this: label counts are kept for every class, and a net has an output for each."""

_ARROW: dict[str, Any] = {"uint8": pa.uint8(), "float32": pa.float32(), "int64": pa.int64()}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHeader:
    """What an image file says of itself."""

    size: tuple[int, int]
    """Height and width in pixels, as the file lies."""
    upright: tuple[int, int]
    """The same, turned as `image_codec.decode` turns."""
    channels: int
    """1 of grey images, 3 of coloured ones, 4 of those with transparency, as `decode_stored` gives them."""
    bits: int
    """Of one value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageForm:
    """How encoded images (JPEG, PNG, …) become pixels; number of channels and size are the column's shape."""

    order: Literal["rgb", "bgr"] = "rgb"
    """Of the channels."""
    as_stored: bool = False
    """The channels are the file's, and so must their number be; if not, files are brought to one or three."""
    resize_mode: Literal["exact", "shorter_side"] = "exact"
    """Stretch to the column's size, or cover it with the proportions kept and cut out the middle."""
    own_size: bool = False
    """Each image keeps its own size, at least the column's, and a square is cut out of it whenever it is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column: an input of the net, a target of its loss, or the rows' weights."""

    name: str
    """The column's name in the DataFrame and in the shards."""
    dtype: Literal["uint8", "float32", "int64"]
    """Type of one value."""
    shape: tuple[int, ...]
    """Shape of one row; () for single values."""
    image: ImageForm | None = None
    """The rows are encoded images that are decoded so, to uint8 of `shape`; None: they are stored as they are."""
    classes: int | None = None
    """The values are classes, from 0 to below this; 0: classes, how many only the rows tell; None: no classes."""

    @property
    def told(self) -> str:
        """Name and shape as people read them, `image 3 x 32 x 32`."""
        told = " ".join([self.name, " x ".join(map(str, self.shape))]).rstrip()
        return f"{told} or larger" if self.own_size else told

    @property
    def own_size(self) -> bool:
        """Whether the rows are images that each keep their own size; the shape is then the least of all."""
        return self.image is not None and self.image.own_size

    @property
    def width(self) -> int:
        """Values in one row."""
        return prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in memory; of images after decoding."""
        return self.width * np.dtype(self.dtype).itemsize

    @property
    def arrow_type(self) -> Any:
        """The Arrow type: bytes for encoded images, else a fixed-size list of a row's values or the bare value."""
        if self.image:
            # Offsets of 64 bits: a shard may hold more than 2 GB of files.
            return pa.large_binary()
        # Not nullable: whoever reads a shard need not look for nulls.
        value = _ARROW[self.dtype]
        return pa.list_(pa.field("item", value, nullable=False), self.width) if self.shape else value

    def to_arrow(self, values: np.ndarray | Cells) -> Any:
        """Wrap rows as an Arrow array: `dtype` [n, *shape], not copied if C-contiguous, or encoded images."""
        if isinstance(values, Cells):
            return values.to_arrow()
        # Arrow's values lie in C order: an array of another layout is copied.
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, type=self.arrow_type) if self.shape else flat

    def to_numpy(self, array: Any) -> np.ndarray:
        """View an Arrow array of stored values without nulls as `dtype` [n, *shape], read-only, no copy."""
        if not self.shape:
            return array.to_numpy(zero_copy_only=True)
        return array.flatten().to_numpy(zero_copy_only=True).reshape(len(array), *self.shape)


ENCODED_IMAGE = Column(name="image", dtype="uint8", shape=(), image=ImageForm())
"""Images as files, each of its own size, until somebody says what they become."""
LABEL = Column(name="label", dtype="int64", shape=(), classes=0)
"""The label of every format that is read here."""


def schema_of(columns: Iterable[Column]) -> pa.Schema:
    """The Arrow schema of rows with these columns; no value may be null."""
    return pa.schema([pa.field(column.name, column.arrow_type, nullable=False) for column in columns])


def batch_of(columns: Iterable[Column], arrays: Mapping[str, np.ndarray | Cells]) -> pa.RecordBatch:
    """Make one record batch of `arrays`: under each column's name its `dtype` [n, *shape] or encoded images."""
    columns = tuple(columns)
    values = [column.to_arrow(arrays[column.name]) for column in columns]
    return pa.RecordBatch.from_arrays(values, schema=schema_of(columns))


def check_labels(labels: np.ndarray, *, classes: int, where: str, first_row: int) -> None:
    """Refuse labels outside 0..classes-1.

    Args:
        labels: integers [n].
        classes: number of classes.
        where: the file or column, for the message.
        first_row: number of the first label's row within `where`.

    Raises:
        DataError: naming the first bad row.
    """
    # At once and without a loop; only an error looks for its row.
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        at = int(bad.argmax())
        raise DataError(
            f"{where}: row {first_row + at} has label {int(labels[at])}; labels must be 0 to {classes - 1} for "
            f"{classes} classes: correct the labels or set data.classes"
        )


def check_alike(found: Column, trained: Column, *, any_type: bool = False, cut: bool = False) -> None:
    """Refuse a column of other rows than a model was trained on.

    Args:
        found: what there is.
        trained: what there was in training.
        any_type: whatever can be read will do: a net's file says nothing of the type.
        cut: a square was cut out of what is there.

    Raises:
        DataError: type or shape are others.
    """
    dtype = found.dtype if any_type else trained.dtype
    # A square that is cut out of them makes images of several sizes one.
    several = found.own_size or trained.own_size or cut
    here, there = (one.shape[:1] if several else one.shape for one in (found, trained))
    if (found.dtype, here) != (dtype, there):
        raise DataError(
            f"column {found.name} is {found.dtype} of shape {found.shape}; the model was trained on "
            f"{trained.dtype} of shape {trained.shape}: give rows of the same kind"
        )
