"""MNIST and its look-alikes: IDX files of 28x28 images and of labels, plain or gzipped."""

import gzip
import struct
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import LABEL, Column, check_labels
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import Location, Split, find_files, ranges, split_rows
from sparknet.data.sources.image_batches import pixel_batch
from sparknet.data.sources.source import Source
from sparknet.data.storage.place import LOCAL, Facts, Place, Storage
from sparknet.errors import DataError

__all__ = ["MnistPartition", "open_source", "read"]

_CLASSES = 10
_SCHEMA = RowSchema(
    inputs=(Column(name="image", dtype="uint8", shape=(1, 28, 28)),), targets=(replace(LABEL, classes=_CLASSES),)
)
_SIDE = 28
_IMAGES, _LABELS = 0x803, 0x801
_HEADER_BYTES = {_IMAGES: 16, _LABELS: 8}
_PARTITION_ROWS = 20_000  # 16 MB: three partitions of the training file
_BATCH_ROWS = 4_000
_STEMS: dict[Split, str] = {"train": "train", "test": "t10k"}


@dataclass(frozen=True, kw_only=True, slots=True)
class MnistPartition:
    """Rows of an images file and of the labels file that belongs to it."""

    images: str
    """Absolute path or URI of the images file."""
    labels: str
    """Of the labels file: it is looked for once, not by every task."""
    start: int
    stop: int


def open_source(where: Location) -> Source:
    """Open an images file, a glob of them, or a directory with the standard names.

    A labels file stands beside its images file, with `labels` for `images` in its name. A gzipped file is
    one partition, since it can be read only from its beginning.

    Args:
        where: the path names train-images-idx3-ubyte, t10k-images-idx3-ubyte, also with a dot before idx3 and with
            .gz; the split says which files of a directory.

    Raises:
        DataError: a file is missing, no IDX file, truncated or empty, or images and labels differ in number.
    """
    images = _images(where.path, split=where.split, storage=where.storage)
    pairs = [(file, _labels_of(where.storage.place(file.uri))) for file in images]
    # The headers say everything, so that a damaged file is found here.
    partitions = [part for pair in pairs for part in _partitions_of(*pair, storage=where.storage)]
    return Source(schema=_SCHEMA, files=[file for pair in pairs for file in pair], cut=lambda: partitions)


def read(partition: MnistPartition, storage: Storage = LOCAL) -> Iterator[pa.RecordBatch]:
    """Yield the partition's rows: image binary, uint8 [1, 28, 28] 0..255, label int64 0..9.

    Raises:
        DataError: a file is damaged or truncated, or holds a label above 9; names file and row.
    """
    labels = storage.place(partition.labels)
    pixels = _records(storage.place(partition.images), magic=_IMAGES, size=_SIDE * _SIDE, partition=partition)
    classes = _records(labels, magic=_LABELS, size=1, partition=partition)
    first = partition.start
    for image, label in zip(pixels, classes, strict=True):
        label = label.reshape(-1).astype(np.int64)
        check_labels(label, classes=_CLASSES, where=labels.uri, first_row=first)
        yield pixel_batch(image, label)
        first += len(label)


def _images(path: str, *, split: Split, storage: Storage) -> list[Facts]:
    stem = _STEMS[split]
    names = [f"{stem}-images{dot}idx3-ubyte{end}" for end in ("", ".gz") for dot in "-."]
    found = find_files(path, in_directory=names, what=f"MNIST {split} images", storage=storage)
    # A glob like `train*` means both, and the labels file is found by its images.
    images = [file for file in found if "labels" not in file.name]
    if not images:
        raise DataError(f"{path}: only labels; MNIST is named by its images file: give that one")
    return images


def _partitions_of(file: Facts, labels: Facts, *, storage: Storage) -> list[MnistPartition]:
    images = storage.place(file.uri)
    rows, gzipped = _rows(images, _IMAGES, size=file.bytes)
    also, _ = _rows(storage.place(labels.uri), _LABELS, size=labels.bytes)
    if rows != also:
        raise DataError(
            f"{images} has {rows} images and {labels.uri} has {also} labels; they must be as many: fetch both again"
        )
    return [
        MnistPartition(images=part.path, labels=labels.uri, start=part.start, stop=part.stop)
        # A gzipped file cannot be entered in its middle.
        for part in split_rows(images, rows=rows, most=rows if gzipped else _PARTITION_ROWS)
    ]


def _labels_of(images: Place) -> Facts:
    if "images" not in images.name:
        raise DataError(
            f"{images}: the name of an MNIST images file must hold 'images', so that its labels file can be "
            "found: rename both (train-images-idx3-ubyte, train-labels-idx1-ubyte)"
        )
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    plain = name.removesuffix(".gz")
    # One of the two may have been unpacked by hand.
    for candidate in (name, plain, f"{plain}.gz"):
        found = (images.parent / candidate).facts()
        if found and not found.is_directory:
            return found
    raise DataError(f"{images.parent / name}: no such file; {images.name} needs its labels beside it")


@contextmanager
def _open(place: Place) -> Generator[tuple[BinaryIO, bool]]:
    """The file's contents, and whether they were gzipped."""
    with place.open() as file:
        # By its first bytes, not its name: servers and browsers unpack on the way and keep the name.
        if file.peek(2)[:2] != b"\x1f\x8b":
            yield file, False
            return
        with gzip.open(file, "rb") as unpacked:
            yield cast("BinaryIO", unpacked), True


def _rows(place: Place, magic: int, *, size: int) -> tuple[int, bool]:
    """The number of rows, as the header says, and whether the file is gzipped; a plain one must be as long."""
    with _open(place) as (file, gzipped):
        header = _take(file, _HEADER_BYTES[magic], place=place)
    found, rows, *sides = struct.unpack(f">{len(header) // 4}I", header)
    if found != magic:
        raise DataError(
            f"{place}: magic number {found:#x}; IDX {'images' if magic == _IMAGES else 'labels'} start with "
            f"{magic:#x}: name an images file, with its labels beside it"
        )
    if any(side != _SIDE for side in sides):
        raise DataError(f"{place}: images of {sides[0]}x{sides[1]}; MNIST images are 28x28: use another source")
    if not rows:
        raise DataError(f"{place}: no rows; an IDX file must hold at least one: fetch it again")
    expected = len(header) + rows * (_SIDE * _SIDE if sides else 1)
    # A gzipped file's own length says nothing; it is found short when it is read.
    if not gzipped and size != expected:
        raise DataError(f"{place}: {size} bytes; {rows} rows take {expected}: fetch it again")
    return rows, gzipped


def _records(place: Place, *, magic: int, size: int, partition: MnistPartition) -> Iterator[np.ndarray]:
    with _open(place) as (file, _):
        skip = _HEADER_BYTES[magic] + partition.start * size
        _seek(file, skip, place=place)
        for start, stop in ranges(partition.start, partition.stop, _BATCH_ROWS):
            data = _take(file, (stop - start) * size, place=place)
            yield np.frombuffer(data, np.uint8).reshape(stop - start, size)


def _seek(file: BinaryIO, offset: int, *, place: Place) -> None:
    try:
        file.seek(offset)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{place}: damaged: {error}; fetch it again") from error


def _take(file: BinaryIO, size: int, *, place: Place) -> bytes:
    try:
        data = file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{place}: damaged: {error}; fetch it again") from error
    if len(data) < size:
        raise DataError(f"{place}: truncated, {size - len(data)} bytes are missing: fetch it again")
    return data
