"""CIFAR-10 binary batches: records of one label byte and the 3x32x32 planes red, green, blue."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import Column, batch_of, check_labels
from sparknet.data.sources.files import Split, Unit, find_files, ranges, split_rows
from sparknet.data.storage.place import LOCAL, Facts, Storage
from sparknet.errors import DataError

__all__ = ["CLASSES", "COLUMNS", "files", "read", "units"]

CLASSES = 10
COLUMNS = (
    Column(name="image", dtype="uint8", shape=(3, 32, 32)),
    Column(name="label", dtype="int64", shape=()),
)
_RECORD_BYTES = 1 + 3 * 32 * 32
_UNIT_ROWS = 5_000  # 15 MB: two units for each of the original's files
_BATCH_ROWS = 1_000
_PATTERNS: dict[Split, str] = {"train": "data_batch_*.bin", "test": "test_batch.bin"}


def units(path: str, *, split: Split = "train", storage: Storage = LOCAL) -> list[Unit]:
    """List the units of a batch file, a glob, or a directory with data_batch_*.bin and test_batch.bin.

    Args:
        path: file, glob or directory, as a path or URI; the directory may hold `cifar-10-batches-bin/`, as the
            archive does.
        split: which files of a directory: the training batches or the test batch.
        storage: how a URI is reached.

    Raises:
        DataError: a file is missing, empty, or not made of 3073-byte records.
    """
    found = files(path, split=split, storage=storage)
    return [unit for file in found for unit in _units_of(file, storage=storage)]


def files(path: str, *, split: Split = "train", storage: Storage = LOCAL) -> list[Facts]:
    """List the files that `units` of the same arguments read.

    Raises:
        DataError: nothing is there.
    """
    pattern = _PATTERNS[split]
    places = (pattern, f"cifar-10-batches-bin/{pattern}")
    return find_files(path, in_directory=places, what=f"CIFAR-10 {split} batches", storage=storage)


def read(unit: Unit, storage: Storage = LOCAL) -> Iterator[pa.RecordBatch]:
    """Yield the unit's rows: image uint8 [3, 32, 32] 0..255, label int64 0..9.

    Raises:
        DataError: the file cannot be read, has shrunk, or holds a label above 9; names file and row.
    """
    start, size = unit.start * _RECORD_BYTES, (unit.stop - unit.start) * _RECORD_BYTES
    data = memoryview(storage.place(unit.path).read_range(start, size))
    for first, last in ranges(unit.start, unit.stop, _BATCH_ROWS):
        piece = data[first * _RECORD_BYTES - start : last * _RECORD_BYTES - start]
        yield _decode(piece, path=unit.path, start=first)


def _units_of(file: Facts, *, storage: Storage) -> list[Unit]:
    rows, rest = divmod(file.bytes, _RECORD_BYTES)
    if rest or not rows:
        raise DataError(
            f"{file.uri}: {file.bytes} bytes; a CIFAR-10 binary batch is one or more records of {_RECORD_BYTES} "
            "bytes: fetch the binary version again"
        )
    return split_rows(storage.place(file.uri), rows=rows, most=_UNIT_ROWS)


def _decode(data: memoryview, *, path: str, start: int) -> pa.RecordBatch:
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD_BYTES)
    labels = records[:, 0].astype(np.int64)
    check_labels(labels, classes=CLASSES, where=path, first_row=start)
    return batch_of(COLUMNS, {"image": records[:, 1:], "label": labels})
