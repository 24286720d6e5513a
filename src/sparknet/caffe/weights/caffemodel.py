"""Weight files: Caffe's binary `.caffemodel`, and the way to its HDF5 sibling.

A file is a `NetParameter`, a net's description with the layers' blobs in it. Blobs go to layers by name, so reading
needs nothing of the description; all three generations of the format are read (net.cpp: CopyTrainedLayersFrom).
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from google.protobuf.message import DecodeError

from sparknet.caffe.description.upgrade import upgrade_net
from sparknet.caffe.net_files import written_whole
from sparknet.caffe.schema import BlobProto, NetParameter
from sparknet.caffe.schema.strings import readable_strings
from sparknet.caffe.weights import hdf5
from sparknet.caffe.weights.blobs import Array, array_of
from sparknet.caffe.weights.wire import cut_numbers, layer_bytes
from sparknet.errors import NetError

__all__ = ["LIMIT_BYTES", "Weights", "is_text", "read_weights", "upgrade_binary", "write_binary"]

LIMIT_BYTES = 2**31 - 1
"""No protobuf message may be larger, here and in Caffe."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Weights:
    """What a weight file holds."""

    source: str
    """The file."""
    blobs: dict[str, dict[int, Array]]
    """By layer name, then by place: `blobs["conv1"][0]` is its weight, `[1]` its bias. Layers without blobs are
    there too. HDF5 files leave out the places of shared blobs but the first."""
    description: NetParameter | None
    """The net as a binary file describes it, in that file's own generation of the format, without blobs."""
    is_modern: bool = False
    """Whether description and blobs are in the form that Caffe 1.0 writes."""


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read a `.caffemodel` or a `.caffemodel.h5`, told apart by what the file begins with.

    Raises:
        NetError: the file is missing, truncated, damaged or no weight file; the message says which.
    """
    source = os.fspath(path)
    data = _content(source)
    if data is None:
        return Weights(source=source, blobs=hdf5.read_hdf5(source), description=None)
    net, pieces = _parsed(data, source)
    # V0 keeps name and blobs one message further in than V1.
    older = [(layer.layer if layer.HasField("layer") else layer) for layer in net.layers]
    is_modern = not older and all(_is_modern(blob) for layer in net.layer for blob in layer.blobs)
    blobs = _taken([*net.layer, *older], pieces, source)
    return Weights(source=source, blobs=blobs, description=net, is_modern=is_modern)


def upgrade_binary(path: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write a `.caffemodel` of an older generation as one of Caffe 1.0; blobs stay as they are, legacy axes too.

    Raises:
        NetError: the file is no such file, has what cannot be upgraded, or the new one cannot be written.
    """
    source = os.fspath(path)
    data = _content(source)
    if data is None:
        raise NetError(f"{source} is HDF5, which has no older form; there is nothing to upgrade")
    # Read once more below, with the blobs in it: they are moved by protobuf and never looked at.
    _parsed(data, source)  # for its errors
    modern = upgrade_net(NetParameter.FromString(data)).net
    with written_whole(target) as draft:
        draft.write_bytes(modern.SerializeToString())


def _content(source: str) -> bytes | None:
    """The file's bytes; None for HDF5."""
    try:
        with Path(source).open("rb", buffering=0) as file:  # a buffer would be one more copy of everything
            if file.read(len(hdf5.MAGIC)) == hdf5.MAGIC:
                return None
            size = os.fstat(file.fileno()).st_size
            if size > LIMIT_BYTES:
                raise NetError(
                    f"{source} has {size} bytes; a .caffemodel has at most {LIMIT_BYTES} (2 GiB): "
                    "keep such weights as .caffemodel.h5"
                )
            file.seek(0)
            return file.read()
    except OSError as error:
        raise NetError(f"{source} cannot be read: {error.strerror or error}; give a .caffemodel file") from error


def _parsed(data: bytes, source: str) -> tuple[NetParameter, list[memoryview]]:
    """The net, and the numbers of its blobs apart."""
    net = NetParameter()
    pieces: list[memoryview] = []
    try:
        rest, pieces = cut_numbers(data)
        net.ParseFromString(rest)
        damage = "" if net.layer or net.layers else "it holds no layers"
    except DecodeError:
        damage = f"its {len(data)} bytes are truncated or damaged"
    if damage:
        if not data:
            damage = "it is empty"
        elif is_text(data):
            damage = "it is text, perhaps the net's description (.prototxt)"
        raise NetError(f"{source} is no weight file: {damage}; give the .caffemodel that belongs to the net")
    return readable_strings(net), pieces


def is_text(data: bytes) -> bool:
    """Whether bytes begin as a prototxt would, and a binary file would not."""
    # A binary file begins with the net's name, which is text; tags and lengths show soon after it.
    return all(byte >= 0x20 or byte in b"\t\n\r\f" for byte in data[:4096]) and b"\x7f" not in data[:4096]


class _WithBlobs(Protocol):
    """A layer of any generation."""

    @property
    def name(self) -> str: ...
    @property
    def blobs(self) -> Sequence[BlobProto]: ...
    def ClearField(self, field_name: str, /) -> None: ...


def _taken(layers: Iterable[_WithBlobs], pieces: Sequence[memoryview], source: str) -> dict[str, dict[int, Array]]:
    """Take the blobs out of the layers; of layers with the same name the last one counts, as in Caffe."""
    found: dict[str, dict[int, Array]] = {}
    for layer in layers:
        arrays: dict[int, Array] = {}
        for place, blob in enumerate(layer.blobs):
            try:
                arrays[place] = array_of(blob, pieces)
            except NetError as error:
                raise NetError(f"{source}: layer {layer.name!r}, blob {place}: {error}") from error
        # net.cpp copies layer after layer, so the last one stays. Split layers of Caffe's making have no blobs.
        if arrays or layer.name not in found:
            found[layer.name] = arrays
        layer.ClearField("blobs")
    return found


def _is_modern(blob: BlobProto) -> bool:
    """Whether writing the blob's array again gives the same bytes."""
    fields = {field.name for field, _ in blob.ListFields()}
    # Legacy axes, double precision, gradients and numbers in several pieces are read, but written otherwise.
    return fields <= {"shape", "data"} and len(blob.data) == 1


def write_binary(description: NetParameter, blobs: Sequence[Sequence[Array]], path: str | os.PathLike[str]) -> None:
    """Write a `.caffemodel`: the description with the blobs of each of its layers, whole or not at all.

    Raises:
        NetError: it cannot be written, or would be larger than protobuf allows.
    """
    # Before anything is written: protobuf would find out behind 2 GiB.
    size = description.ByteSize() + sum(array.nbytes for arrays in blobs for array in arrays)
    if size > LIMIT_BYTES:
        raise NetError(
            f"{os.fspath(path)} would have {size} bytes; a .caffemodel has at most {LIMIT_BYTES} (2 GiB): "
            "give a name that ends in .h5"
        )
    head = NetParameter()
    head.CopyFrom(description)
    head.ClearField("layer")
    with written_whole(path) as draft, draft.open("wb") as file:
        # Messages one after the other are one message with all their fields; `layer` has the highest number.
        file.write(head.SerializeToString())
        for layer, arrays in zip(description.layer, blobs, strict=True):
            file.writelines(layer_bytes(layer, arrays))
