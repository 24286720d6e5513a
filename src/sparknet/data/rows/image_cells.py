"""The cells of an Arrow column that hold images: files (binary), or pixels as Spark's `image` source gives them."""

from typing import Any

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import ImageForm, ImageHeader
from sparknet.data.rows.image_codec import (
    Space,
    StoredSpace,
    convert_space,
    decode,
    decode_into,
    decode_stored,
    header_of,
    in_order,
    is_encoded,
    size_of,
    write_planes,
)
from sparknet.data.rows.own_size import planes_of
from sparknet.errors import BadImage

__all__ = ["ImageCells", "holds_pixels", "is_binary"]

_SPACES: dict[int, StoredSpace] = {1: "gray", 3: "bgr", 4: "bgra"}
_MODES = {1: 0, 3: 16, 4: 24}  # OpenCV's numbers of 8-bit pixels: CV_8UC1, CV_8UC3, CV_8UC4
_FIELDS = {"height", "width", "nChannels", "mode", "data"}


def is_binary(kind: Any) -> bool:
    """Tell whether an Arrow type is bytes of any length."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_pixels(kind: Any) -> bool:
    """Tell whether an Arrow type is the struct of Spark's `image` source."""
    return pa.types.is_struct(kind) and {kind.field(index).name for index in range(kind.num_fields)} >= _FIELDS


class ImageCells:
    """A column's images by row; whatever a cell lacks to be an image is a BadImage."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self._holds_pixels = holds_pixels(array.type)

    def __len__(self) -> int:
        return len(self._array)

    def count_bytes(self, index: int) -> int:
        """Bytes in the cell; 0 for null, and for a struct, whose bytes say nothing."""
        # The length is a cell's own here; nothing else tells pixels from files.
        return 0 if self._holds_pixels else len(self._array[index].as_py() or b"")

    def begins(self, index: int) -> bool:
        """Tell whether the cell looks like an image from its first bytes; a struct always does."""
        cell = self._array[index].as_py()
        return cell is not None and (self._holds_pixels or is_encoded(cell))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, without decoding."""
        cell = self._cell(index)
        return _pixels(cell).shape[:2] if self._holds_pixels else size_of(cell)

    def header(self, index: int) -> ImageHeader:
        """What the image says of itself."""
        cell = self._cell(index)
        if not self._holds_pixels:
            return header_of(cell)
        height, width, channels = _pixels(cell).shape
        return ImageHeader(size=(height, width), upright=(height, width), channels=channels, bits=8)

    def decode(self, index: int, *, form: ImageForm) -> np.ndarray:
        """All pixels, uint8 [height, width, channels]; tells whether the whole image is there."""
        cell = self._cell(index)
        if self._holds_pixels:
            return _pixels(cell)
        return decode_stored(cell, order="bgr") if form.as_stored else decode(cell, channels=3, order="rgb")

    def planes(self, index: int, *, form: ImageForm, channels: int) -> np.ndarray:
        """All pixels as a net takes them, uint8 [channels, height, width], of whatever size the image is."""
        cell = self._cell(index)
        if not self._holds_pixels:
            return planes_of(cell, form=form, channels=channels)
        image = _pixels(cell)
        if form.as_stored:
            return in_order(image, form.order).transpose(2, 0, 1)
        return convert_space(image, _SPACES[image.shape[2]], _wanted(form, channels)).transpose(2, 0, 1)

    def write(self, index: int, out: np.ndarray, *, form: ImageForm) -> None:
        """Decode the image into `out`, uint8 [channels, height, width]; see `decode_into`."""
        cell = self._cell(index)
        if not self._holds_pixels:
            decode_into(out, cell, form=form)
            return
        image = _pixels(cell)
        if form.as_stored:
            write_planes(out, in_order(image, form.order), form=form)
            return
        # Spark's source gives OpenCV's order, blue first.
        space = _wanted(form, len(out))
        write_planes(out, convert_space(image, _SPACES[image.shape[2]], space), form=form)

    def _cell(self, index: int) -> Any:
        cell = self._array[index].as_py()
        if cell is None:
            raise BadImage("the image is null: leave it out")
        return cell


def _wanted(form: ImageForm, channels: int) -> Space:
    return "gray" if channels == 1 else form.order


def _pixels(cell: dict[str, Any]) -> np.ndarray:
    """View a struct's pixels as uint8 [height, width, channels], channels in OpenCV's order."""
    height, width, channels = (cell[name] or 0 for name in ("height", "width", "nChannels"))
    data = cell["data"] or b""
    if (
        channels not in _MODES
        # Modes of 16 bits or floats have as many channels, but not of bytes.
        or cell["mode"] != _MODES[channels]
        or min(height, width) < 1
        or len(data) != height * width * channels
    ):
        raise BadImage(
            f"the image struct has height {height}, width {width}, nChannels {channels}, mode {cell['mode']} and "
            f"{len(data)} bytes, which is no 8-bit image of 1, 3 or 4 channels: leave it out"
        )
    return np.frombuffer(data, np.uint8).reshape(height, width, channels)
