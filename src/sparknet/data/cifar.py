"""CIFAR-10 binary batches: records of one label byte and the 3x32x32 planes red, green, blue."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from sparknet.data.columns import Column, batch_of, check_labels
from sparknet.data.units import Split, Unit, find_files, ranges, split_rows
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


def units(path: str, *, split: Split = "train") -> list[Unit]:
    """List the units of a batch file, a glob, or a directory with data_batch_*.bin and test_batch.bin.

    Args:
        path: file, glob or directory; the directory may hold `cifar-10-batches-bin/`, as the archive does.
        split: which files of a directory: the training batches or the test batch.

    Raises:
        DataError: a file is missing, empty, or not made of 3073-byte records.
    """
    return [unit for file in files(path, split=split) for unit in _units_of(file)]


def files(path: str, *, split: Split = "train") -> list[Path]:
    """List the files that `units` of the same arguments read.

    Raises:
        DataError: nothing is there.
    """
    pattern = _PATTERNS[split]
    places = (pattern, f"cifar-10-batches-bin/{pattern}")
    return find_files(path, in_directory=places, what=f"CIFAR-10 {split} batches")


def read(unit: Unit) -> Iterator[pa.RecordBatch]:
    """Yield the unit's rows: image uint8 [3, 32, 32] 0..255, label int64 0..9.

    Raises:
        DataError: the file cannot be read, has shrunk, or holds a label above 9; names file and row.
    """
    path = Path(unit.path)
    try:
        with path.open("rb") as file:
            file.seek(unit.start * _RECORD_BYTES)
            for start, stop in ranges(unit.start, unit.stop, _BATCH_ROWS):
                data = file.read((stop - start) * _RECORD_BYTES)
                yield _decode(data, path=path, start=start, stop=stop)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}; check that every worker reaches it") from error


def _units_of(file: Path) -> list[Unit]:
    size = file.stat().st_size
    rows, rest = divmod(size, _RECORD_BYTES)
    if rest or not rows:
        raise DataError(
            f"{file}: {size} bytes; a CIFAR-10 binary batch is one or more records of {_RECORD_BYTES} bytes: "
            "fetch the binary version again"
        )
    return split_rows(file, rows=rows, most=_UNIT_ROWS)


def _decode(data: bytes, *, path: Path, start: int, stop: int) -> pa.RecordBatch:
    if len(data) != (stop - start) * _RECORD_BYTES:
        raise DataError(f"{path}: ends before row {stop}; it shrank while it was read: read it again")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD_BYTES)
    labels = records[:, 0].astype(np.int64)
    check_labels(labels, classes=CLASSES, where=str(path), first_row=start)
    return batch_of(COLUMNS, {"image": records[:, 1:], "label": labels})
