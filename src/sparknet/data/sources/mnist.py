"""MNIST and its look-alikes: IDX files of 28x28 images and of labels, plain or gzipped."""

import gzip
import struct
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import Column, batch_of, check_labels
from sparknet.data.sources.files import Split, Unit, find_files, ranges, split_rows
from sparknet.data.storage.place import LOCAL, Facts, Place, Storage
from sparknet.errors import DataError

__all__ = ["CLASSES", "COLUMNS", "files", "read", "units"]

CLASSES = 10
COLUMNS = (
    Column(name="image", dtype="uint8", shape=(1, 28, 28)),
    Column(name="label", dtype="int64", shape=()),
)
_SIDE = 28
_IMAGES, _LABELS = 0x803, 0x801
_HEADER_BYTES = {_IMAGES: 16, _LABELS: 8}
_UNIT_ROWS = 20_000  # 16 MB: three units of the training file
_BATCH_ROWS = 4_000
_STEMS: dict[Split, str] = {"train": "train", "test": "t10k"}


def units(path: str, *, split: Split = "train", storage: Storage = LOCAL) -> list[Unit]:
    """List the units of an images file, a glob of them, or a directory with the standard names.

    A labels file stands beside its images file, with `labels` for `images` in its name. A gzipped file is
    one unit, since it can be read only from its beginning.

    Args:
        path: file, glob or directory, as a path or URI (train-images-idx3-ubyte, t10k-images-idx3-ubyte, also
            with a dot before idx3 and with .gz).
        split: which files of a directory.
        storage: how a URI is reached.

    Raises:
        DataError: a file is missing, no IDX file, truncated or empty, or images and labels differ in number.
    """
    images = _images(path, split=split, storage=storage)
    return [unit for file in images for unit in _units_of(file, storage=storage)]


def files(path: str, *, split: Split = "train", storage: Storage = LOCAL) -> list[Facts]:
    """List the files that `units` of the same arguments read: images and labels.

    Raises:
        DataError: a file is missing.
    """
    images = _images(path, split=split, storage=storage)
    return [file for image in images for file in (image, _labels_of(storage.place(image.uri)))]


def read(unit: Unit, storage: Storage = LOCAL) -> Iterator[pa.RecordBatch]:
    """Yield the unit's rows: image uint8 [1, 28, 28] 0..255, label int64 0..9.

    Raises:
        DataError: a file is damaged or truncated, or holds a label above 9; names file and row.
    """
    images = storage.place(unit.path)
    labels = storage.place(_labels_of(images).uri)
    pixels = _records(images, magic=_IMAGES, size=_SIDE * _SIDE, unit=unit)
    classes = _records(labels, magic=_LABELS, size=1, unit=unit)
    first = unit.start
    for image, label in zip(pixels, classes, strict=True):
        label = label.reshape(-1).astype(np.int64)
        check_labels(label, classes=CLASSES, where=labels.uri, first_row=first)
        yield batch_of(COLUMNS, {"image": image, "label": label})
        first += len(label)


def _images(path: str, *, split: Split, storage: Storage) -> list[Facts]:
    stem = _STEMS[split]
    names = [f"{stem}-images{dot}idx3-ubyte{end}" for end in ("", ".gz") for dot in "-."]
    found = find_files(path, in_directory=names, what=f"MNIST {split} images", storage=storage)
    images = [file for file in found if "labels" not in file.name]
    if not images:
        raise DataError(f"{path}: only labels; MNIST is named by its images file: give that one")
    return images


def _units_of(file: Facts, *, storage: Storage) -> list[Unit]:
    images = storage.place(file.uri)
    labels = _labels_of(images)
    rows, gzipped = _rows(images, _IMAGES, size=file.bytes)
    also, _ = _rows(storage.place(labels.uri), _LABELS, size=labels.bytes)
    if rows != also:
        raise DataError(
            f"{images} has {rows} images and {labels.uri} has {also} labels; they must be as many: fetch both again"
        )
    return split_rows(images, rows=rows, most=rows if gzipped else _UNIT_ROWS)


def _labels_of(images: Place) -> Facts:
    if "images" not in images.name:
        raise DataError(
            f"{images}: the name of an MNIST images file must hold 'images', so that its labels file can be "
            "found: rename both (train-images-idx3-ubyte, train-labels-idx1-ubyte)"
        )
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    plain = name.removesuffix(".gz")
    for candidate in (name, plain, f"{plain}.gz"):
        found = (images.parent / candidate).facts()
        if found and not found.is_directory:
            return found
    raise DataError(f"{images.parent / name}: no such file; {images.name} needs its labels beside it")


@contextmanager
def _open(place: Place) -> Generator[tuple[BinaryIO, bool]]:
    """The file's contents, and whether they were gzipped."""
    with place.open() as file:
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
    if not gzipped and size != expected:
        raise DataError(f"{place}: {size} bytes; {rows} rows take {expected}: fetch it again")
    return rows, gzipped


def _records(place: Place, *, magic: int, size: int, unit: Unit) -> Iterator[np.ndarray]:
    with _open(place) as (file, _):
        skip = _HEADER_BYTES[magic] + unit.start * size
        _seek(file, skip, place=place)
        for start, stop in ranges(unit.start, unit.stop, _BATCH_ROWS):
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
