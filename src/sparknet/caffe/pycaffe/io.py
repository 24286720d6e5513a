"""`caffe.io` as far as layers use it: images, Datum records and blobs of files, to and from arrays."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparknet.caffe.pycaffe import caffe_pb2

__all__ = [
    "Transformer",
    "array_to_blobproto",
    "array_to_datum",
    "blobproto_to_array",
    "caffe_pb2",
    "datum_to_array",
    "load_image",
    "resize_image",
]

Image = NDArray[Any]
"""[height, width, channels]."""

_LUMA = (0.2125, 0.7154, 0.0721)


def load_image(filename: str | os.PathLike[str], color: bool = True) -> NDArray[np.float32]:
    """An image file as float32 [height, width, 3] in RGB, 0..1; without `color` [height, width, 1]."""
    # Imported here, as wherever one of them is used: most layers use neither.
    from PIL import Image as images

    with images.open(filename) as file:
        pixels = np.asarray(file if file.mode == "L" else file.convert("RGB"), np.float32) / 255
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, np.newaxis], 3 if color else 1, axis=2)
    elif not color:
        pixels = (pixels @ np.array(_LUMA, np.float32))[:, :, np.newaxis]
    return np.asarray(pixels, np.float32)


def resize_image(im: Image, new_dims: Sequence[int], interp_order: int = 1) -> NDArray[np.float32]:
    """An image brought to (height, width): `interp_order` 0 takes the nearest pixel, 1 is linear, 3 cubic."""
    import cv2

    orders = {0: cv2.INTER_NEAREST, 1: cv2.INTER_LINEAR, 3: cv2.INTER_CUBIC}
    if interp_order not in orders:
        raise ValueError(f"interp_order is {interp_order}; it must be one of {', '.join(map(str, orders))}")
    height, width = (int(size) for size in new_dims)
    resized = cv2.resize(np.asarray(im, np.float32), (width, height), interpolation=orders[interp_order])
    # A single channel comes back without its axis.
    return np.asarray(resized, np.float32).reshape(height, width, im.shape[2])


def blobproto_to_array(blob: Any, return_diff: bool = False) -> NDArray[Any]:
    """The numbers of a BlobProto in its shape, four axes for one of the old form."""
    numbers = np.array(blob.diff if return_diff else blob.data)
    old = any(blob.HasField(axis) for axis in ("num", "channels", "height", "width"))
    shape = (blob.num, blob.channels, blob.height, blob.width) if old else tuple(blob.shape.dim)
    return numbers.reshape(shape)


def array_to_blobproto(arr: NDArray[Any], diff: NDArray[Any] | None = None) -> Any:
    """A BlobProto with these numbers."""
    blob = caffe_pb2.BlobProto()
    blob.shape.dim.extend(arr.shape)
    blob.data.extend(arr.astype(float).flat)
    if diff is not None:
        blob.diff.extend(diff.astype(float).flat)
    return blob


def array_to_datum(arr: NDArray[Any], label: int | None = None) -> Any:
    """A Datum of [channels, height, width]: uint8 as bytes, other numbers as floats."""
    if arr.ndim != 3:
        raise ValueError(f"the array has shape {arr.shape}; a Datum has (channels, height, width)")
    channels, height, width = arr.shape
    datum = caffe_pb2.Datum(channels=channels, height=height, width=width)
    if arr.dtype == np.uint8:
        datum.data = arr.tobytes()
    else:
        datum.float_data.extend(arr.astype(float).flat)
    if label is not None:
        datum.label = label
    return datum


def datum_to_array(datum: Any) -> NDArray[Any]:
    """The numbers of a Datum, [channels, height, width]: uint8 of bytes, float64 of floats."""
    numbers = np.frombuffer(datum.data, np.uint8) if datum.data else np.array(datum.float_data, float)
    return numbers.reshape(datum.channels, datum.height, datum.width)


class Transformer:
    """Brings images to what a net takes: size, order of axes and channels, range, mean.

    Args:
        inputs: by blob its shape, (batch, channels, height, width).
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = dict(inputs)
        self.transpose: dict[str, tuple[int, ...]] = {}
        self.channel_swap: dict[str, tuple[int, ...]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, NDArray[Any]] = {}
        self.input_scale: dict[str, float] = {}

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """Bring the axes to this order, (2, 0, 1) from (height, width, channels)."""
        self._known(in_)
        self.transpose[in_] = tuple(order)

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """Then the channels, (2, 1, 0) from RGB to BGR."""
        self._known(in_)
        self.channel_swap[in_] = tuple(order)

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """Then multiply, by 255 what was 0..1."""
        self._known(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: NDArray[Any]) -> None:
        """Then take off a mean image, or a number for each channel."""
        self._known(in_)
        self.mean[in_] = mean[:, np.newaxis, np.newaxis] if mean.ndim == 1 else mean

    def set_input_scale(self, in_: str, scale: float) -> None:
        """And multiply at last."""
        self._known(in_)
        self.input_scale[in_] = scale

    def preprocess(self, in_: str, data: Image) -> NDArray[np.float32]:
        """An image [height, width, channels] as float32 [channels, height, width] of the blob's size."""
        self._known(in_)
        size = tuple(self.inputs[in_][2:])
        values = np.asarray(data, np.float32)
        if values.shape[:2] != size:
            values = resize_image(values, size)
        if in_ in self.transpose:
            values = values.transpose(self.transpose[in_])
        if in_ in self.channel_swap:
            values = values[list(self.channel_swap[in_])]
        values = values * np.float32(self.raw_scale.get(in_, 1.0))
        if in_ in self.mean:
            values = values - self.mean[in_]
        return np.asarray(values * np.float32(self.input_scale.get(in_, 1.0)), np.float32)

    def _known(self, name: str) -> None:
        if name not in self.inputs:
            raise ValueError(f"{name!r} is not one of the inputs {', '.join(map(repr, self.inputs))}")
