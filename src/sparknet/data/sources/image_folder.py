"""A directory with a sub-directory of images for each class: `cat/1.jpg`, `cat/more/2.png`, `dog/1.jpg`.

Classes are the names of the sub-directories in sorted order, numbered from 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import ENCODED_IMAGE, LABEL
from sparknet.data.rows.extremes import Extremes
from sparknet.data.rows.image_codec import size_of
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import Location, ranges
from sparknet.data.sources.image_batches import IMAGE_SUFFIXES, LARGEST_IMAGE, NamedRow, NamedRows
from sparknet.data.sources.source import Source
from sparknet.data.storage.place import LOCAL, Facts, Place, Storage
from sparknet.errors import BadImage, DataError

__all__ = ["FolderPartition", "open_source", "read", "read_files"]

_PARTITION_FILES = 512
_READERS = 8  # an object store answers a request in some 30 ms, however small the file
_READ_AT_ONCE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderPartition:
    """Images of an input partition."""

    directory: str
    """Absolute path or URI of the directory that has the classes' directories."""
    names: tuple[str, ...]
    """Of the images, from that directory on: `cat/1.jpg`."""
    labels: tuple[int, ...]
    """Of each image."""
    sizes: tuple[int, ...]
    """Of each image when it was listed, bytes: how many are read at once."""


def open_source(where: Location) -> Source:
    """Open a directory.

    Args:
        where: `class_names` are the sub-directories that number the classes, where other images have settled them;
            `labels` is a directory that does, where they are not known: test images must be numbered as the
            training images were.

    Raises:
        DataError: there are no images, one lies in no class's directory, or a class is not among those of `labels`.
    """
    root = where.storage.place(where.path)
    images = _images(root)
    class_names = where.class_names or _class_names(
        images if not where.labels else _images(where.storage.place(where.labels))
    )
    numbers = {name: number for number, name in enumerate(class_names)}
    for name, _ in images:
        if _class_of(name) not in numbers:
            of = where.labels or "the training images"
            raise DataError(
                f"{root.uri}: {_class_of(name)!r} is no class of {of}, which has {len(numbers)}; both need the "
                "same sub-directories: correct the name, or train with images of it"
            )
    schema = RowSchema(
        inputs=(ENCODED_IMAGE,), targets=(replace(LABEL, classes=len(class_names)),), class_names=class_names
    )
    return Source(
        schema=schema,
        files=[file for _, file in images],
        labels=lambda _: Extremes.of(
            np.array([numbers[_class_of(name)] for name, _ in images]), lambda at: f"image {images[at][1].uri}"
        ),
        cut=lambda: _partitions(root, images, numbers),
    )


def _partitions(
    root: Place, images: Sequence[tuple[str, Facts]], numbers: Mapping[str, int]
) -> list[FolderPartition]:
    return [
        FolderPartition(
            directory=root.uri,
            # Names travel without their directory, which is the same for all.
            names=tuple(name for name, _ in images[start:stop]),
            labels=tuple(numbers[_class_of(name)] for name, _ in images[start:stop]),
            sizes=tuple(file.bytes for _, file in images[start:stop]),
        )
        for start, stop in ranges(0, len(images), _PARTITION_FILES)
    ]


def read(partition: FolderPartition, storage: Storage = LOCAL) -> Iterator[pa.RecordBatch]:
    """Yield the partition's rows: name string, image binary, label int64, error string (null).

    A file that begins as no image, or is larger than one, has null for image and label, and the error says why.

    Raises:
        DataError: a file is gone or cannot be read.
    """
    root = storage.place(partition.directory)
    return read_files(partition, [root / name for name in partition.names])


def read_files(partition: FolderPartition, places: Sequence[Place]) -> Iterator[pa.RecordBatch]:
    """The same, of images that lie at these places."""
    batch = NamedRows()
    with ThreadPoolExecutor(_READERS) as pool:
        # Group by group: `map` would otherwise read the whole partition ahead of whoever takes the rows.
        for start, stop in _groups(partition.sizes):
            contents = pool.map(_content, places[start:stop], partition.sizes[start:stop])
            names, labels = partition.names[start:stop], partition.labels[start:stop]
            facts = zip(names, labels, places[start:stop], contents, strict=True)
            for name, label, place, data in facts:
                error = _what_is_wrong(place, data)
                row = NamedRow(name=name, error=error) if error else NamedRow(name=name, image=data, label=label)
                if not batch.has_room(row):
                    yield batch.take()
                batch.append(row)
        if len(batch):
            yield batch.take()


def _groups(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Which consecutive files are read at the same time: a few, and fewer where they are large."""
    start, held = 0, 0
    for stop, size in enumerate(sizes):
        # One file at least, however large it is.
        if stop > start and (stop - start >= 4 * _READERS or held + size > _READ_AT_ONCE_BYTES):
            yield start, stop
            start, held = stop, 0
        held += size
    yield start, len(sizes)


def _content(place: Place, size: int) -> bytes | None:
    """The file; None where it is larger than an image."""
    # A video among the images would fill the memory of the task.
    return place.read() if size <= LARGEST_IMAGE else None


def _what_is_wrong(place: Place, data: bytes | None) -> str | None:
    if data is None:
        return f"{place.uri}: more than {LARGEST_IMAGE} bytes, which no image has"
    try:
        # The header alone: whoever needs the pixels decodes them, and finds what is damaged behind it.
        size_of(data)
    except BadImage as error:
        return f"{place.uri}: {error}"
    return None


def _class_names(images: Sequence[tuple[str, Facts]]) -> tuple[str, ...]:
    # Sorted, as torchvision's ImageFolder numbers them too.
    return tuple(sorted({_class_of(name) for name, _ in images}))


def _class_of(name: str) -> str:
    return name.split("/", 1)[0]


def _images(root: Place) -> list[tuple[str, Facts]]:
    """Name and facts of each image, sorted by name; what is hidden is left out."""
    found = [(file.uri[len(root.uri) + 1 :], file) for file in root.files(recursive=True)]
    images = [(name, file) for name, file in found if _is_image(name)]
    if not images:
        raise DataError(
            f"{root.uri}: no images in it; source image_folder takes a directory with a sub-directory for each "
            f"class of images ({', '.join(IMAGE_SUFFIXES)}): correct data.path"
        )
    beside = next((name for name, _ in images if "/" not in name), None)
    if beside:
        raise DataError(
            f"{root.uri}: {beside} lies in no class's sub-directory; every image needs one: move it, or name its "
            "parent if this directory is a class itself"
        )
    return images


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not any(part.startswith(".") for part in name.split("/"))
