"""Mean images as `compute_image_mean` writes them: a `BlobProto` with the legacy axes, in `mean.binaryproto`."""

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


def read_mean(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Read a mean image.

    Returns:
        float32 [channels, height, width], in the range of the images that it was made of.

    Raises:
        NetError: the file is missing, damaged, or holds no single image.
    """
    source = os.fspath(path)
    blob = BlobProto()
    try:
        blob.ParseFromString(Path(path).read_bytes())
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
