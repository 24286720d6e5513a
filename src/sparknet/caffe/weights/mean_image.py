"""Mean images as `compute_image_mean` writes them: a `BlobProto` with the legacy axes, in `mean.binaryproto`.

Also read, and not written, are those of the first SparkNet, `imagenet.mean`: a `float[]` as Java serialises it.
"""

import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from sparknet.caffe.net_files import written_whole
from sparknet.caffe.schema import BlobProto
from sparknet.caffe.weights.blobs import array_of
from sparknet.errors import NetError

__all__ = ["read_mean", "write_mean"]

_log = logging.getLogger(__name__)

# Magic number and version; an array of the class "[F" with its fixed number, flags, no fields, no superclass. The
# count of the floats follows, and they themselves, all big-endian (Java Object Serialization Specification, 6.4).
_JAVA_FLOATS = bytes.fromhex("aced0005 7572 00025b46 0b9c818922e00c42 020000 7870")


def read_mean(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Read a mean image, Caffe's or the first SparkNet's.

    Returns:
        float32 [channels, height, width], in the range of the images that it was made of.

    Raises:
        NetError: the file is missing, damaged, or holds no single image.
    """
    source = os.fspath(path)
    blob = BlobProto()
    try:
        content = Path(path).read_bytes()
        if content.startswith(_JAVA_FLOATS):
            return _java_mean(content, source)
        blob.ParseFromString(content)
        mean = array_of(blob)
    except OSError as error:
        raise NetError(f"{source} cannot be read: {error.strerror or error}; give a .binaryproto file") from error
    except (DecodeError, NetError) as error:
        raise NetError(f"{source} is no mean image, or a damaged one: {error}; give a .binaryproto file") from error
    # compute_image_mean writes num = 1; other tools write three axes.
    shape = mean.shape[1:] if mean.ndim == 4 and mean.shape[0] == 1 else mean.shape
    if len(shape) != 3 or 0 in shape:
        raise NetError(f"{source} holds a blob of shape {mean.shape}; a mean image is (1, channels, height, width)")
    with np.errstate(over="ignore"):  # double precision beyond float32 becomes infinite, and says so later
        return mean.reshape(shape).astype(np.float32)


def _java_mean(content: bytes, source: str) -> NDArray[np.float32]:
    """The image in a serialised `float[]`: three planes of one square."""
    begin = len(_JAVA_FLOATS) + 4
    count = int.from_bytes(content[len(_JAVA_FLOATS) : begin], "big")
    side = math.isqrt(count // 3)
    if len(content) != begin + 4 * count or not count or 3 * side**2 != count:
        raise NetError(
            f"it is a float[] of Java's, of {count} numbers in {len(content)} bytes; the mean of images has three "
            "square planes, 3 x 256 x 256 say, and nothing behind them"
        )
    # It does not tell which plane is which, and blue and red change places unseen.
    _log.warning(
        "%s is the first SparkNet's, whose images are red, green and blue planes: rows must be in that order too, "
        'data.channel_order="rgb"',
        source,
    )
    return np.frombuffer(content, ">f4", offset=begin).reshape(3, side, side).astype(np.float32)


def write_mean(path: str | os.PathLike[str], mean: NDArray[Any]) -> None:
    """Write a mean image, whole or not at all.

    Args:
        path: the file, `.binaryproto` by custom.
        mean: [channels, height, width]; kept as float32.

    Raises:
        NetError: it has other axes, or the file cannot be written.
    """
    if mean.ndim != 3 or 0 in mean.shape:
        raise NetError(f"the mean image has shape {mean.shape}; it must be (channels, height, width)")
    channels, height, width = mean.shape
    # The legacy axes, as compute_image_mean writes them; old Caffes know no others.
    blob = BlobProto(num=1, channels=channels, height=height, width=width)
    blob.data.append(mean.astype("<f4").tobytes())
    with written_whole(path) as draft:
        draft.write_bytes(blob.SerializeToString())
