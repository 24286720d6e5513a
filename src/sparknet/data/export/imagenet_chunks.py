"""Tar chunks out of rows that come sorted, with a report for each, and what the label file of them all says."""

import hashlib
import io
import itertools
import tarfile
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import IO

from sparknet.data.export.imagenet_pieces import Row
from sparknet.data.export.imagenet_plan import Damage, Layout, Report, dump

__all__ = ["labelled", "write_chunks"]

EXAMPLES = 10
"""So many names of files without a label are kept of each chunk."""


def write_chunks(layout: Layout, rows: Iterable[Row]) -> Iterator[Report]:
    """Write tar files, each followed by its report: both appear whole or not at all.

    The bytes depend on the rows alone. One image is in memory at a time.

    Args:
        layout: where they go.
        rows: sorted by chunk and place, and all of a chunk's.

    Yields:
        A report when a chunk and its report are written.

    Raises:
        DataError: the destination cannot be written.
    """
    for number, group in itertools.groupby(rows, key=attrgetter("chunk")):
        report = _write_chunk(layout, number, group)
        layout.report(number).write(dump(report))
        yield report


def _write_chunk(layout: Layout, number: int, rows: Iterable[Row]) -> Report:
    images, unlabelled = 0, 0
    corrupt, missing, examples = list[Damage](), list[str](), list[str]()
    with layout.chunk(number).writing() as file:
        counted = _Counted(file)
        with tarfile.open(fileobj=counted, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for row in rows:
                if row.kind == "image":
                    tar.addfile(_header(row), io.BytesIO(row.image))
                    images += 1
                elif row.kind == "corrupt":
                    corrupt.append(Damage(name=row.name, reason=row.reason))
                elif row.kind == "missing":
                    missing.append(row.name)
                else:
                    unlabelled += 1
                    examples.extend([row.name] * (len(examples) < EXAMPLES))
    return Report(
        chunk=number,
        images=images,
        bytes=counted.bytes,
        sha256=counted.digest.hexdigest(),
        corrupt=tuple(corrupt),
        missing=tuple(missing),
        unlabelled=unlabelled,
        unlabelled_examples=tuple(examples),
    )


def _header(row: Row) -> tarfile.TarInfo:
    """Nothing in it tells who made the file, or when: the same images are the same bytes."""
    header = tarfile.TarInfo(row.name)
    header.size = len(row.image)
    header.mode = 0o644
    return header


class _Counted(io.RawIOBase):
    """Passes bytes on to a file, counts them and takes their SHA-256."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.bytes = 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride] - tarfile has bytes
        self._file.write(data)
        self.bytes += len(data)
        self.digest.update(data)
        return len(data)


def labelled(names: Iterable[str], labels: Iterable[int], reports: Iterable[Report]) -> Iterator[tuple[str, int]]:
    """Name and label of each image in the chunks, in their order.

    Args:
        names: all entries in the drawn order.
        labels: theirs.
        reports: of all chunks; they say which images are not there.
    """
    left_out = set[str]()
    for report in reports:
        left_out.update(damage.name for damage in report.corrupt)
        left_out.update(report.missing)
    return ((name, label) for name, label in zip(names, labels, strict=True) if name not in left_out)
