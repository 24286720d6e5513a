"""Label files: a line `NAME LABEL` for each image, as in Caffe's `train.txt` and `val.txt`."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparknet.data.rows.columns import MOST_CLASSES
from sparknet.data.storage.place import Place
from sparknet.errors import DataError

__all__ = ["Labels", "write_labels"]

_STEP = 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINES_AT_ONCE = 1 << 16  # Python's strings are four times as large as Arrow's, so few exist at a time


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Labels:
    """The label of every image by its base name: ImageNet's 1.3 million take 60 MB and are read in 2 s."""

    file: str
    """The label file's URI, for messages."""
    names: Any
    """As the file has them, with directories: Arrow binary [n], sorted by base name, without repetitions."""
    values: np.ndarray
    """Their labels: int32 [n]."""
    steps: list[bytes]
    """Every 16th base name: a list is searched faster than Arrow's array, which needs less memory."""

    @classmethod
    def read(cls, place: Place) -> "Labels":
        r"""Read lines `NAME LABEL`: UTF-8, split at the last blank, ended by \n or \r\n; empty lines are skipped.

        Raises:
            DataError: the file is missing, empty or not UTF-8, a line is of another form or its label no integer
                from 0 to MOST_CLASSES - 1, or a base name has two labels; names the file, and the line or name.
        """
        names, bases, values = list[Any](), list[Any](), list[np.ndarray]()
        for chunk in _chunks(place):
            names.append(pa.array([name for name, _ in chunk], pa.large_binary()))
            bases.append(pa.array([_base(name) for name, _ in chunk], pa.large_binary()))
            values.append(np.fromiter((label for _, label in chunk), np.int32, len(chunk)))
        if not sum(map(len, values)):
            raise DataError(f"{place}: no lines; a label file has a line NAME LABEL for each image: give another")
        return _sorted(place, pa.concat_arrays(names), pa.concat_arrays(bases), np.concatenate(values))

    def __len__(self) -> int:
        return len(self.values)

    def items(self) -> Iterator[tuple[str, int]]:
        """Name, as the file has it, and label of each image, sorted by base name."""
        return zip((name.as_py().decode() for name in self.names), self.values.tolist(), strict=True)

    def of(self, name: str) -> int | None:
        """The label of an image; None if the file does not name it. Directories do not matter."""
        at = self.find(name)
        return None if at is None else int(self.values[at])

    def find(self, name: str) -> int | None:
        """Where an image stands in `names` and `values`; None if it does not. Directories do not matter."""
        base = _base(name.encode())
        # Two steps: the list finds the sixteen, and Arrow's array, from which each look makes an object, the one.
        step = max(0, bisect_right(self.steps, base) - 1) * _STEP
        at = bisect_left(range(len(self)), base, step, min(len(self), step + _STEP), key=self._base_at)
        return at if at < len(self) and self._base_at(at) == base else None

    def base_name(self, at: int) -> str:
        """The name at a place of `names`, without directories."""
        return self._base_at(at).decode()

    def _base_at(self, at: int) -> bytes:
        return _base(self.names[at].as_py())


def write_labels(place: Place, labels: Iterable[tuple[str, int]]) -> None:
    """Write a label file, whole or not at all.

    Args:
        place: the file.
        labels: name and label of each image, in the order of the lines.

    Raises:
        DataError: it cannot be written, or a name or label could not be read again.
    """
    with place.writing() as file:
        for name, label in labels:
            line = f"{name} {label}\n".encode()
            # By reading the line again: what cannot be read is found now, and not by whoever trains.
            if not _readable(line, name.encode(), label):
                raise DataError(
                    f"{place}: {name!r} with label {label!r} is no line of a label file; names are of one line and "
                    f"end with no blank, labels are from 0 to {MOST_CLASSES - 1}: rename the image or correct "
                    "the label"
                )
            file.write(line)


def _readable(line: bytes, name: bytes, label: int) -> bool:
    try:
        return b"\n" not in name and _parse(line) == (name, label)
    except _BadLineError:
        return False


class _BadLineError(Exception):
    """A line is not NAME LABEL."""


def _base(name: bytes) -> bytes:
    return name.rpartition(b"/")[2]


def _chunks(place: Place) -> Iterator[list[tuple[bytes, int]]]:
    """Name and label of each line, many lines at a time."""
    first = 1
    for lines in _lines(place):
        try:
            b"".join(lines).decode()  # to see that it is text; names stay bytes, which take less memory
            parsed = [_parse(line) for line in lines]
        except UnicodeDecodeError as error:
            number = first + b"".join(lines).count(b"\n", 0, error.start)
            raise DataError(
                f"{place}: line {number} is not UTF-8; a label file is text: convert it, or set data.labels to "
                "another file"
            ) from error
        except _BadLineError:
            raise _bad_line(lines, first, place) from None
        first += len(lines)
        yield [entry for entry in parsed if entry is not None]


def _lines(place: Place) -> Iterator[list[bytes]]:
    with place.open() as file:
        try:
            # Editors of Windows put the mark there; it would become part of the first name.
            mark = file.peek(len(_BYTE_ORDER_MARK))
            file.seek(len(_BYTE_ORDER_MARK) if mark.startswith(_BYTE_ORDER_MARK) else 0)
            while lines := list(islice(file, _LINES_AT_ONCE)):
                yield lines
        except OSError as error:
            raise DataError(f"{place}: cannot be read: {error}; check that every worker reaches it") from error


def _parse(line: bytes) -> tuple[bytes, int] | None:
    # From the right: names may hold blanks, labels never do.
    parts = line.rsplit(None, 1)
    if not parts:
        return None
    # Nine digits at most: of thousands Python's int makes an error of its own.
    if len(parts) < 2 or not parts[1].isdigit() or len(parts[1]) > 9 or parts[0].endswith(b"/"):
        raise _BadLineError
    label = int(parts[1])
    if label >= MOST_CLASSES:
        raise _BadLineError
    return parts[0], label


def _bad_line(lines: list[bytes], first: int, place: Place) -> DataError:
    for number, line in enumerate(lines, first):
        try:
            _parse(line)
        except _BadLineError:
            return DataError(
                f"{place}: line {number} is {line.decode().strip()[:80]!r}; it must be NAME LABEL with a label "
                f"from 0 to {MOST_CLASSES - 1}: correct it, or set data.labels to another file"
            )
    raise AssertionError("no line is bad")


def _sorted(place: Place, names: Any, bases: Any, values: np.ndarray) -> Labels:
    # Sorted by Arrow: Python's own would make an object of each of a million names.
    order = pc.call_function("sort_indices", [bases])
    bases, values = bases.take(order), values[order.to_numpy()]
    # Equal neighbours once they are sorted: a dictionary of a million names would take several times the memory.
    again = pc.call_function("equal", [bases[1:], bases[:-1]]).to_numpy(zero_copy_only=False)
    # The same name twice with one label is harmless.
    different = again & (values[1:] != values[:-1])
    if different.any():
        at = int(different.argmax())
        raise DataError(
            f"{place}: {bases[at].as_py().decode()} has the labels {values[at]} and {values[at + 1]}; images are "
            "found by their names without directories, so a name has one label: correct the file or rename an image"
        )
    # The first of equal names.
    kept = np.flatnonzero(np.concatenate(([True], ~again)))
    names = names.take(order.take(pa.array(kept)))
    del order, bases, again
    pa.default_memory_pool().release_unused()  # five times what is kept, and a machine has many such processes
    steps = [_base(name.as_py()) for name in names[::_STEP]]
    return Labels(file=place.uri, names=names, values=values[kept], steps=steps)
