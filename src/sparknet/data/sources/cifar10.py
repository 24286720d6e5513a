"""CIFAR-10 binary batches: records of one label byte and the 3x32x32 planes red, green, blue."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import LABEL, Column, check_labels
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import Location, RowRange, Split, find_files, ranges, split_rows
from sparknet.data.sources.image_batches import pixel_batch
from sparknet.data.sources.source import Source
from sparknet.data.storage.place import LOCAL, Facts, Storage
from sparknet.errors import DataError

__all__ = ["open_source", "read"]

_CLASSES = 10
_SCHEMA = RowSchema(
    inputs=(Column(name="image", dtype="uint8", shape=(3, 32, 32)),), targets=(replace(LABEL, classes=_CLASSES),)
)
_RECORD_BYTES = 1 + 3 * 32 * 32
_PARTITION_ROWS = 5_000  # 15 MB: two partitions for each of the original's files
_BATCH_ROWS = 1_000
_PATTERNS: dict[Split, str] = {"train": "data_batch_*.bin", "test": "test_batch.bin"}


def open_source(where: Location) -> Source:
    """Open a batch file, a glob, or a directory with data_batch_*.bin and test_batch.bin.

    Args:
        where: the directory may hold `cifar-10-batches-bin/`, as the archive does; the split says which files of a
            directory: the training batches or the test batch.

    Raises:
        DataError: a file is missing, empty, or not made of 3073-byte records.
    """
    pattern = _PATTERNS[where.split]
    places = (pattern, f"cifar-10-batches-bin/{pattern}")
    what = f"CIFAR-10 {where.split} batches"
    files = find_files(where.path, in_directory=places, what=what, storage=where.storage)
    # Their sizes say everything, so that a damaged file is found here.
    partitions = [part for file in files for part in _partitions_of(file, storage=where.storage)]
    return Source(schema=_SCHEMA, files=files, cut=lambda: partitions)


def read(partition: RowRange, storage: Storage = LOCAL) -> Iterator[pa.RecordBatch]:
    """Yield the partition's rows: image binary, uint8 [3, 32, 32] 0..255, label int64 0..9.

    Raises:
        DataError: the file cannot be read, has shrunk, or holds a label above 9; names file and row.
    """
    start, size = partition.start * _RECORD_BYTES, (partition.stop - partition.start) * _RECORD_BYTES
    # One ranged read of 15 MB, and views of it: an object store answers one request.
    data = memoryview(storage.place(partition.path).read_range(start, size))
    for first, last in ranges(partition.start, partition.stop, _BATCH_ROWS):
        piece = data[first * _RECORD_BYTES - start : last * _RECORD_BYTES - start]
        yield _decode(piece, path=partition.path, start=first)


def _partitions_of(file: Facts, *, storage: Storage) -> list[RowRange]:
    # The only thing that can be told without reading: the format has no header and no checksum.
    rows, rest = divmod(file.bytes, _RECORD_BYTES)
    if rest or not rows:
        raise DataError(
            f"{file.uri}: {file.bytes} bytes; a CIFAR-10 binary batch is one or more records of {_RECORD_BYTES} "
            "bytes: fetch the binary version again"
        )
    return split_rows(storage.place(file.uri), rows=rows, most=_PARTITION_ROWS)


def _decode(data: memoryview, *, path: str, start: int) -> pa.RecordBatch:
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD_BYTES)
    # The labels stand between the images, so both are copied apart.
    labels = records[:, 0].astype(np.int64)
    check_labels(labels, classes=_CLASSES, where=path, first_row=start)
    return pixel_batch(records[:, 1:], labels)
