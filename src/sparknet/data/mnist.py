"""MNIST and its look-alikes: IDX files of 28x28 images and of labels, plain or gzipped."""

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa

from sparknet.data.columns import Column, batch_of, check_labels
from sparknet.data.units import Split, Unit, find_files, ranges, split_rows
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


def units(path: str, *, split: Split = "train") -> list[Unit]:
    """List the units of an images file, a glob of them, or a directory with the standard names.

    A labels file stands beside its images file, with `labels` for `images` in its name. A gzipped file is
    one unit, since it can be read only from its beginning.

    Args:
        path: file, glob or directory (train-images-idx3-ubyte, t10k-images-idx3-ubyte, also with a dot
            before idx3 and with .gz).
        split: which files of a directory.

    Raises:
        DataError: a file is missing, no IDX file, truncated or empty, or images and labels differ in number.
    """
    images = _images(path, split=split)
    return [unit for file in images for unit in _units_of(file)]


def files(path: str, *, split: Split = "train") -> list[Path]:
    """List the files that `units` of the same arguments read: images and labels.

    Raises:
        DataError: a file is missing.
    """
    images = _images(path, split=split)
    return [file for image in images for file in (image, _labels_path(image))]


def read(unit: Unit) -> Iterator[pa.RecordBatch]:
    """Yield the unit's rows: image uint8 [1, 28, 28] 0..255, label int64 0..9.

    Raises:
        DataError: a file is damaged or truncated, or holds a label above 9; names file and row.
    """
    images, labels = Path(unit.path), _labels_path(Path(unit.path))
    pixels = _records(images, magic=_IMAGES, size=_SIDE * _SIDE, unit=unit)
    classes = _records(labels, magic=_LABELS, size=1, unit=unit)
    first = unit.start
    for image, label in zip(pixels, classes, strict=True):
        label = label.reshape(-1).astype(np.int64)
        check_labels(label, classes=CLASSES, where=str(labels), first_row=first)
        yield batch_of(COLUMNS, {"image": image, "label": label})
        first += len(label)


def _images(path: str, *, split: Split) -> list[Path]:
    stem = _STEMS[split]
    names = [f"{stem}-images{dot}idx3-ubyte{end}" for end in ("", ".gz") for dot in "-."]
    found = find_files(path, in_directory=names, what=f"MNIST {split} images")
    images = [file for file in found if "labels" not in file.name]
    if not images:
        raise DataError(f"{path}: only labels; MNIST is named by its images file: give that one")
    return images


def _units_of(images: Path) -> list[Unit]:
    labels = _labels_path(images)
    rows, also = _rows(images, _IMAGES), _rows(labels, _LABELS)
    if rows != also:
        raise DataError(
            f"{images} has {rows} images and {labels} has {also} labels; they must be as many: fetch both again"
        )
    return split_rows(images, rows=rows, most=rows if _gzipped(images) else _UNIT_ROWS)


def _labels_path(images: Path) -> Path:
    if "images" not in images.name:
        raise DataError(
            f"{images}: the name of an MNIST images file must hold 'images', so that its labels file can be "
            "found: rename both (train-images-idx3-ubyte, train-labels-idx1-ubyte)"
        )
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    plain = name.removesuffix(".gz")
    for candidate in (name, plain, f"{plain}.gz"):
        if images.with_name(candidate).is_file():
            return images.with_name(candidate)
    raise DataError(f"{images.with_name(name)}: no such file; {images.name} needs its labels beside it")


def _gzipped(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}; check that every worker reaches it") from error


def _open(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if _gzipped(path) else path.open("rb")


def _rows(path: Path, magic: int) -> int:
    """Read the number of rows from an IDX header; for a plain file, hold the file's size against it."""
    with _open(path) as file:
        header = _take(file, _HEADER_BYTES[magic], path=path)
    found, rows, *sides = struct.unpack(f">{len(header) // 4}I", header)
    if found != magic:
        raise DataError(
            f"{path}: magic number {found:#x}; IDX {'images' if magic == _IMAGES else 'labels'} start with "
            f"{magic:#x}: name an images file, with its labels beside it"
        )
    if any(side != _SIDE for side in sides):
        raise DataError(f"{path}: images of {sides[0]}x{sides[1]}; MNIST images are 28x28: use another source")
    if not rows:
        raise DataError(f"{path}: no rows; an IDX file must hold at least one: fetch it again")
    size, expected = path.stat().st_size, len(header) + rows * (_SIDE * _SIDE if sides else 1)
    if not _gzipped(path) and size != expected:
        raise DataError(f"{path}: {size} bytes; {rows} rows take {expected}: fetch it again")
    return rows


def _records(path: Path, *, magic: int, size: int, unit: Unit) -> Iterator[np.ndarray]:
    with _open(path) as file:
        skip = _HEADER_BYTES[magic] + unit.start * size
        _seek(file, skip, path=path)
        for start, stop in ranges(unit.start, unit.stop, _BATCH_ROWS):
            data = _take(file, (stop - start) * size, path=path)
            yield np.frombuffer(data, np.uint8).reshape(stop - start, size)


def _seek(file: BinaryIO, offset: int, *, path: Path) -> None:
    try:
        file.seek(offset)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged: {error}; fetch it again") from error


def _take(file: BinaryIO, size: int, *, path: Path) -> bytes:
    try:
        data = file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged: {error}; fetch it again") from error
    if len(data) < size:
        raise DataError(f"{path}: truncated, {size - len(data)} bytes are missing: fetch it again")
    return data
