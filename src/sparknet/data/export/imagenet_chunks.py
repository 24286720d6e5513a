"""One tar chunk out of rows that come sorted, with a report beside it."""

import io
import tarfile
from collections.abc import Iterable

from sparknet.data.export.imagenet_pieces import ImageRow
from sparknet.data.export.imagenet_plan import LeftOut, TarReport, Work, dump

__all__ = ["write_chunk"]

EXAMPLES = 10
"""So many names of files without a label are kept of each chunk."""


def write_chunk(work: Work, number: int, rows: Iterable[ImageRow]) -> TarReport:
    """Write a tar file and then its report: both appear whole or not at all.

    The bytes depend on the rows alone. One image is in memory at a time.

    Args:
        work: says where they go, and which images belong there.
        number: the chunk.
        rows: all of the chunk's, sorted by place and offset.

    Raises:
        DataError: the destination cannot be written.
    """
    left = dict.fromkeys(work.plan.places_in(number))
    corrupt, unlabelled, stretches = list[LeftOut](), list[str](), list[str]()
    images = others = 0
    with work.layout.chunk(number).writing() as file:
        # Said, and not left to Python, whose default changed once (3.8): the same rows must be the same bytes.
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for row in rows:
                if not row.name:
                    stretches.append(row.reason)
                elif row.place not in left:  # without a label, or the second file of a name
                    others += 1
                    unlabelled.extend([row.name] * (len(unlabelled) < EXAMPLES))
                else:
                    del left[row.place]
                    if row.reason:
                        corrupt.append(LeftOut(name=row.name, reason=row.reason))
                    else:
                        tar.addfile(_header(row), io.BytesIO(row.image))
                        images += 1
        size = file.tell()
    report = TarReport(
        chunk=number,
        images=images,
        bytes=size,
        corrupt=tuple(corrupt),
        missing=tuple(work.name_at(place) for place in left),
        unlabelled=others,
        unlabelled_examples=tuple(unlabelled),
        stretches=tuple(stretches),
    )
    # Behind the tar file: a report says that its chunk is whole, whatever moment the task was killed at.
    work.layout.report(number).write(dump(report))
    return report


def _header(row: ImageRow) -> tarfile.TarInfo:
    """Nothing in it tells who made the file, or when: the same images are the same bytes."""
    header = tarfile.TarInfo(row.name)
    header.size = len(row.image)
    header.mode = 0o644
    return header
