"""A directory with a sub-directory of images for each class: `cat/1.jpg`, `cat/more/2.png`, `dog/1.jpg`.

Classes are the names of the sub-directories in sorted order, numbered from 0.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from sparknet.data.columns import Column
from sparknet.data.decode import size_of
from sparknet.data.source_rows import SourceRows
from sparknet.data.storage import LOCAL, Facts, Place, Storage
from sparknet.data.units import Location, ranges
from sparknet.errors import BadImage, DataError

__all__ = ["FolderUnit", "describe", "files", "read", "units"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_UNIT_FILES = 512
_BATCH_FILES = 64
_READERS = 8  # an object store answers a request in some 30 ms, however small the file
_SCHEMA = pa.schema([("name", pa.string()), ("image", pa.binary()), ("label", pa.int64()), ("error", pa.string())])


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderUnit:
    """Images that one task reads."""

    directory: str
    """Absolute path or URI of the directory that has the classes' directories."""
    names: tuple[str, ...]
    """Of the images, from that directory on: `cat/1.jpg`."""
    labels: tuple[int, ...]
    """Of each image."""


def describe(where: Location) -> SourceRows:
    """What the rows are: encoded images of as many classes as there are sub-directories with images.

    Raises:
        DataError: there are none.
    """
    image = Column(name="image", dtype="uint8", shape=())
    label = Column(name="label", dtype="int64", shape=())
    return SourceRows(input=image, label=label, classes=len(_classes(where)), encoded=True)


def files(where: Location) -> list[Facts]:
    """List the images, sorted by name.

    Raises:
        DataError: there are none, or one lies in no class's directory.
    """
    return [file for _, file in _images(where.storage.place(where.path))]


def units(where: Location) -> list[FolderUnit]:
    """Cut the images into units.

    Args:
        where: `labels` is the directory whose sub-directories number the classes, where it is another than
            `path`: test images must be numbered as the training images were.

    Raises:
        DataError: there are no images, one lies in no class's directory, or a class is not among those of `labels`.
    """
    root = where.storage.place(where.path)
    named = [name for name, _ in _images(root)]
    numbers = {name: number for number, name in enumerate(_classes(where))}
    for name in named:
        if _class_of(name) not in numbers:
            raise DataError(
                f"{root.uri}: {_class_of(name)!r} is no class of {where.labels}, which has {len(numbers)}; both "
                "need the same sub-directories: correct the name, or train with images of it"
            )
    labels = [numbers[_class_of(name)] for name in named]
    return [
        FolderUnit(directory=root.uri, names=tuple(named[start:stop]), labels=tuple(labels[start:stop]))
        for start, stop in ranges(0, len(named), _UNIT_FILES)
    ]


def read(unit: FolderUnit, storage: Storage = LOCAL) -> Iterator[pa.RecordBatch]:
    """Yield the unit's rows: name string, image binary, label int64, error string (null).

    A file that begins as no image has null for image and label, and the error says why.

    Raises:
        DataError: a file is gone or cannot be read.
    """
    root = storage.place(unit.directory)
    with ThreadPoolExecutor(_READERS) as pool:
        for start, stop in ranges(0, len(unit.names), _BATCH_FILES):
            names = unit.names[start:stop]
            contents = list(pool.map(lambda name: (root / name).read(), names))
            errors = [_what_is_wrong(root / name, data) for name, data in zip(names, contents, strict=True)]
            whole = [error is None for error in errors]
            images = [data if good else None for data, good in zip(contents, whole, strict=True)]
            labels = [label if good else None for label, good in zip(unit.labels[start:stop], whole, strict=True)]
            yield pa.record_batch([names, images, labels, errors], schema=_SCHEMA)


def _what_is_wrong(place: Place, data: bytes) -> str | None:
    try:
        size_of(data)
    except BadImage as error:
        return f"{place.uri}: {error}"
    return None


def _classes(where: Location) -> list[str]:
    images = _images(where.storage.place(where.labels or where.path))
    return sorted({_class_of(name) for name, _ in images})


def _class_of(name: str) -> str:
    return name.split("/", 1)[0]


def _images(root: Place) -> list[tuple[str, Facts]]:
    """Name and facts of each image, sorted by name; what is hidden is left out."""
    found = [(file.uri[len(root.uri) + 1 :], file) for file in root.files(recursive=True)]
    images = [(name, file) for name, file in found if _is_image(name)]
    if not images:
        raise DataError(
            f"{root.uri}: no images in it; source image_folder takes a directory with a sub-directory for each "
            f"class of images ({', '.join(_SUFFIXES)}): correct data.path"
        )
    beside = next((name for name, _ in images if "/" not in name), None)
    if beside:
        raise DataError(
            f"{root.uri}: {beside} lies in no class's sub-directory; every image needs one: move it, or name its "
            "parent if this directory is a class itself"
        )
    return images


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not any(part.startswith(".") for part in name.split("/"))
