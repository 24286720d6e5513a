"""Weights as HDF5: `data/<layer>/<place>` (net.cpp: ToHDF5, CopyTrainedLayersFromHDF5).

Every layer has a group, with blobs or without. Blobs shared by name are written once, by the first layer that has
them; the others' places are left out.
"""

import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sparknet.caffe.net_files import written_whole
from sparknet.caffe.weights.blobs import Array
from sparknet.errors import NetError

if TYPE_CHECKING:
    import h5py
    from _typeshed import ReadableBuffer as Buffer

__all__ = ["MAGIC", "check_names", "read_hdf5", "write_hdf5"]

MAGIC = b"\x89HDF\r\n\x1a\n"
_DEFLATE_BOUND = 1032
"""No compressed byte stands for more bytes than these."""


def read_hdf5(path: str | os.PathLike[str]) -> dict[str, dict[int, Array]]:
    """Return blobs by layer name, then by place.

    Raises:
        NetError: the file is damaged, or is no weight file.
    """
    # Imported here, as wherever HDF5 is read: nets without it need not have it.
    import h5py

    source = os.fspath(path)
    found: dict[str, dict[int, Array]] = {}

    def take(name: str, entry: object) -> None:
        if isinstance(entry, h5py.Dataset):
            # From the right: a layer named `inception_3a/1x1` is a group in a group.
            layer, _, place = name.rpartition("/")
            if not place.isdecimal():
                raise NetError(f"{source}: data/{name} is no blob; those are named 0, 1, ...")
            found.setdefault(layer, {})[int(place)] = _array(entry, f"{source}: data/{name}")
        else:
            found.setdefault(name, {})

    try:
        with h5py.File(source, "r") as file:
            data: Any = file.get("data")
            if not isinstance(data, h5py.Group):
                raise NetError(
                    f"{source} holds no weights: it has {', '.join(file) or 'nothing'} where weights are in the "
                    "group `data`; give the .caffemodel.h5 that belongs to the net"
                )
            data.visititems(take)  # follows no links to other files
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # h5py tells damage with any of them
        reason = " ".join(str(error).split())
        raise NetError(f"{source} is truncated or damaged: {reason}; give a whole .caffemodel.h5") from error
    return found


def _array(dataset: "h5py.Dataset", where: str) -> Array:
    kind: np.dtype[Any] = dataset.dtype
    if kind.kind != "f" or kind.itemsize not in (4, 8):
        raise NetError(f"{where} holds {kind}; a blob is float32 or float64")
    stored = dataset.id.get_storage_size()
    # Before anything is allocated: a few damaged bytes can claim any size.
    if dataset.nbytes > _DEFLATE_BOUND * stored:
        raise NetError(f"{where} claims {dataset.nbytes} bytes and {stored} are there: the file is damaged")
    return np.asarray(dataset[()], np.float64 if kind.itemsize == 8 else np.float32)


def check_names(layers: Iterable[str], with_blobs: Iterable[str], path: str | os.PathLike[str]) -> None:
    """See that layers can be told apart in such a file.

    Raises:
        NetError: a name cannot be that of a group, or two layers with blobs have it.
    """
    for name in layers:
        # HDF5 passes over such parts, so that the group would be found under another name
        if any(part in ("", ".") for part in name.split("/")):
            raise NetError(
                f"{os.fspath(path)} cannot be written as HDF5: layer {name!r} cannot name a group there, where the "
                "parts between slashes must be neither empty nor '.': rename the layer, or write a .caffemodel"
            )
    for name, count in Counter(with_blobs).items():
        if count > 1:
            raise NetError(
                f"{os.fspath(path)} cannot be written as HDF5: {count} layers with blobs are named {name!r}, and "
                "each must have a group of its own there: rename them, or write a .caffemodel"
            )


def write_hdf5(blobs: Mapping[str, Mapping[int, Array]], path: str | os.PathLike[str]) -> None:
    """Write a group for every layer, and in it a dataset for every blob; whole or not at all.

    Raises:
        NetError: it cannot be written.
    """
    import h5py

    with written_whole(path) as draft, _Patient(draft, "w+b") as stream:
        try:
            with h5py.File(stream, "w") as file:
                data = file.create_group("data")
                for name, arrays in blobs.items():
                    # A name with a slash becomes a group in a group; Caffe itself cannot write it.
                    layer = data.require_group(name)
                    for place, array in arrays.items():
                        layer.create_dataset(str(place), data=array)
        except (ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise NetError(f"{os.fspath(path)} cannot be written as HDF5: {reason}") from error
        if stream.failure is not None:
            raise stream.failure


class _Patient(io.FileIO):
    """A file that keeps a failure to itself: HDF5 cannot close a file that it cannot write, and complains for long.

    Attributes:
        failure: what went wrong first.
    """

    failure: OSError | None = None

    def write(self, data: "Buffer", /) -> int:
        """Write everything, or take note."""
        left = whole = memoryview(data).cast("B")
        try:
            while left and self.failure is None:
                left = left[super().write(left) or 0 :]
        except OSError as error:
            self.failure = error
        return len(whole)

    def truncate(self, size: int | None = None, /) -> int:
        """Set the size, or take note."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0
