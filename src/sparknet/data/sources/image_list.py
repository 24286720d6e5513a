"""A list of image files with a number each, lines `PATH LABEL`, as Caffe's ImageData layer reads it.

Labels are numbers: below 0 too, where whoever reads them takes such.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import ENCODED_IMAGE, LABEL
from sparknet.data.rows.extremes import Extremes
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import Location, ranges
from sparknet.data.sources.image_folder import FolderPartition, read_files
from sparknet.data.sources.listed_names import lines_of, root_of
from sparknet.data.sources.source import Source
from sparknet.data.storage.place import LOCAL, Facts, Place, Storage
from sparknet.errors import DataError

__all__ = ["facts_of", "open_source", "read"]

_PARTITION_FILES = 512
_LEAST, _MOST = -(2**31), 2**31 - 1


def open_source(where: Location) -> Source:
    """Open a list; relative paths begin at `where.root`, else in the current directory, else beside the list.

    Files on this machine's disks are looked up; of others a missing one is found when it is read.

    Raises:
        DataError: the list cannot be read, a line is no path with a number, or a file is not there.
    """
    place = where.storage.place(where.path)
    listing = place.facts()
    if listing is None or listing.is_directory:
        raise DataError(
            f"{place}: no such list of images; source image_list reads lines PATH LABEL: correct data.path"
        )
    rows = [_parsed(place, number, line) for number, line in lines_of(place)]
    root = root_of(place, rows[0][0], root=where.root, storage=where.storage)
    names, files = list[str](), [listing]
    for number, (name, _) in enumerate(rows, start=1):
        file = where.storage.place(name) if name.startswith("/") else root / name
        files.append(facts_of(place, number, file))
        names.append(file.uri)
    return Source(
        schema=RowSchema(inputs=(ENCODED_IMAGE,), targets=(LABEL,)),
        files=files,
        labels=lambda _: Extremes.of(
            np.array([label for _, label in rows]), lambda at: f"entry {at + 1} of {place} ({rows[at][0]})"
        ),
        cut=lambda: [
            FolderPartition(
                directory="",
                names=tuple(names[start:stop]),
                labels=tuple(label for _, label in rows[start:stop]),
                sizes=tuple(file.bytes for file in files[start + 1 : stop + 1]),
            )
            for start, stop in ranges(0, len(names), _PARTITION_FILES)
        ],
    )


def read(partition: FolderPartition, storage: Storage = LOCAL) -> Iterator[pa.RecordBatch]:
    """Yield the partition's rows, as those of a folder are.

    Raises:
        DataError: a file is gone or cannot be read.
    """
    places = [storage.place(name) for name in partition.names]
    return read_files(partition, places)


def _parsed(place: Place, number: int, line: str) -> tuple[str, int]:
    # At the last blank, as image_data_layer.cpp does: a path may hold others.
    name, _, label = line.rpartition(" ")
    sign, digits = ("-", label[1:]) if label[:1] == "-" else ("", label)
    # Without zeros in front, of which there may be any number; Python refuses to read thousands of digits.
    digits = digits.lstrip("0") or digits[-1:]
    if name.strip() and digits.isascii() and digits.isdigit() and _LEAST <= int(sign + digits[:12]) <= _MOST:
        return name.strip(), int(sign + digits)
    raise DataError(
        f"{place}: line {number} is {line[:80]!r}; it must be PATH LABEL with a whole number of 32 bits: correct it"
    )


def facts_of(place: Place, number: int, file: Place) -> Facts:
    """What is known of an image that a list names as its entry `number`, without a request for it.

    Raises:
        DataError: it would be on this machine, and is not there.
    """
    if file.local is None:
        # A request for each of a million images would take hours; the list's own time of change must do.
        return Facts(uri=file.uri, name=file.name, bytes=0, modified_ns=None)
    facts = file.facts()
    if facts is None or facts.is_directory:
        raise DataError(
            f"{place}: entry {number} names {file}, which is no file; paths begin at data.root, or in the current "
            "directory, or beside the list: correct it, or set data.root"
        )
    return facts
