"""Tar archives of images, whose labels a file of lines `NAME LABEL` holds.

An image is a member whose bytes begin as one (JPEG, PNG, …). A member whose name ends like an image's, or has a
label, and whose bytes are none, is a damaged row, and so is such a link: its bytes stand elsewhere. Any other
member (a read-me, JSON) is passed over without a word, as are the `._` files that macOS adds. A member `*.tar` is
an archive of images itself, so that `ILSVRC2012_img_train.tar` is read as it is distributed.
"""

import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from sparknet.data.rows.columns import ENCODED_IMAGE, LABEL
from sparknet.data.rows.extremes import Extremes, Seen
from sparknet.data.rows.image_codec import is_encoded
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import Location, Split, find_files
from sparknet.data.sources.image_batches import IMAGE_SUFFIXES, LARGEST_IMAGE, NamedRow, NamedRows
from sparknet.data.sources.label_file import Labels
from sparknet.data.sources.source import IsWrong, Source
from sparknet.data.sources.tar_index import Readable, TarMember, index
from sparknet.data.storage.place import LOCAL, Facts, Place, Storage
from sparknet.errors import DataError

__all__ = ["TarPartition", "has_tests", "open_source", "read"]

_STANDARD: dict[Split, str] = {"train": "ILSVRC2012_img_train", "test": "ILSVRC2012_img_val"}
_LABEL_FILES: dict[Split, str] = {"train": "train.txt", "test": "val.txt"}
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
_PARTITION_BYTES = 64 << 20
_REMOTE_WHOLE_BYTES = 512 << 20
_LOCAL_READ_BYTES = 2 << 20  # what is copied on from a processor's cache is copied fastest
_REMOTE_READ_BYTES = 8 << 20  # a smaller request costs more in latency than in bytes
_MOST_HELD_BYTES = 32 << 20  # of pieces: rows view them, however little of one is an image


@dataclass(frozen=True, kw_only=True, slots=True)
class TarPartition:
    """Members of one archive: an input partition.

    Labels do not travel with it: a task reads the label file itself, once in the life of its process. So small
    archives need no look from the driver, and a partition is a few words however many images it has.
    """

    uri: str
    """The tar file."""
    start: int
    """Its first byte, where a header begins."""
    stop: int
    """Behind its last byte."""
    labels: str
    """URI of the label file."""
    labels_state: tuple[int, int | None]
    """The label file's size and time of change, by which a process knows whether it has read this one already."""


def open_source(where: Location) -> Source:
    """Open tar files; labels are below an unknown bound.

    Cutting them into partitions of about 64 MB needs every header of an archive. For local files that costs some
    10 us an image. A remote file is read whole for it, at the speed of the driver's link, so files up to 512 MB are
    not cut: prefer many tar files of that size to a few large ones.

    Args:
        where: `path` is a tar file, a glob, a directory of `*.tar`, or a directory with ImageNet's standard names:
            `ILSVRC2012_img_train` (split train) and `ILSVRC2012_img_val` (test) as directories or tar files.
            `labels` is the label file; not given, it is `train.txt` (split train) or `val.txt` (test), beside the
            tar files or in the directory above.

    Raises:
        DataError: there is no tar file or no label file; the latter says where it was looked for.
    """
    archives = _archives(where)
    labels = _label_file(where, archives[0])
    return Source(
        schema=RowSchema(inputs=(ENCODED_IMAGE,), targets=(LABEL,)),
        files=[*archives, labels],
        labels=lambda is_wrong: _labels_of_interest(archives, labels, where.storage, is_wrong),
        cut=lambda: _partitions(archives, labels, where.storage),
    )


def has_tests(place: Place) -> bool:
    """Whether a directory of training archives holds test archives too, under ImageNet's name.

    Raises:
        DataError: it cannot be looked at.
    """
    return (place / _STANDARD["test"]).facts() is not None


def read(partition: TarPartition, storage: Storage = LOCAL) -> Iterator[pa.RecordBatch]:
    """Yield the partition's rows: name string, image binary (the file), label int64, error string (null).

    A damaged row has null for image and label, and the error names file and offset: a member that is cut short,
    sparse, a link, no image, or not in the label file, and a stretch of the archive that holds no header.

    Raises:
        DataError: a file is gone, has become shorter, or cannot be read; the label file is damaged.
    """
    labels = _labels(storage, partition.labels, partition.labels_state)
    place = storage.place(partition.uri)
    batch = NamedRows()
    with _Pieces(place, stop=partition.stop) as pieces:
        for member in _members(pieces, partition.stop, start=partition.start):
            row = _row(pieces, member, labels, place)
            if row is None:
                continue
            # Also when little of what was fetched is images: the rows' views keep whole pieces in memory.
            if not batch.has_room(row) or (len(batch) and pieces.fetched_bytes > _MOST_HELD_BYTES):
                yield batch.take()
                pieces.fetched_bytes = 0
            batch.append(row)
        if len(batch):
            yield batch.take()


# -- which files, and which parts of them --


def _archives(where: Location) -> list[Facts]:
    here = _STANDARD[where.split]
    patterns = (f"{here}/*.tar", f"{here}.tar", "*.tar")
    found = find_files(where.path, in_directory=patterns, what="tar files", storage=where.storage)
    other = _STANDARD["test" if where.split == "train" else "train"] + ".tar"
    if where.storage.place(where.path).name != other:  # whoever names it means it
        # `*.tar` in a directory of both archives would mix the splits.
        found = [file for file in found if file.name != other]
    if not found:
        raise DataError(
            f"{where.path}: only {other}; split {where.split} needs {here}.tar: add it, or correct data.path"
        )
    compressed = next((file.uri for file in found if file.name.lower().endswith(_COMPRESSED)), None)
    if compressed:
        raise DataError(
            f"{compressed}: is compressed; tar files are read in parts, which compression prevents, and images "
            "gain nothing by it: unpack it to a .tar first"
        )
    return found


def _label_file(where: Location, archive: Facts) -> Facts:
    directory = where.storage.place(archive.uri).parent
    name = _LABEL_FILES[where.split]
    beside = [directory / name, directory.parent / name]
    for place in [where.storage.place(where.labels)] if where.labels else beside:
        facts = place.facts()
        if facts and not facts.is_directory:
            return facts
    looked = where.labels or f"{beside[0]} or {beside[1]}"
    raise DataError(
        f"{where.path}: no label file {looked}; tar files of images need one with a line NAME LABEL for each "
        "image: set data.labels (data.validation_labels)"
    )


def _partitions(archives: Sequence[Facts], labels: Facts, storage: Storage) -> list[TarPartition]:
    # A Python worker outlives its task, and the label file may be another by the next run.
    state = (labels.bytes, labels.modified_ns)
    return [
        TarPartition(uri=archive.uri, start=start, stop=stop, labels=labels.uri, labels_state=state)
        for archive in archives
        for start, stop in _parts(storage.place(archive.uri), archive.bytes)
    ]


def _parts(place: Place, size: int) -> Iterator[tuple[int, int]]:
    start = 0
    # Cutting needs every header: cheap for a local file, for a remote one the whole file through the driver.
    if size > (_PARTITION_BYTES if place.local else _REMOTE_WHOLE_BYTES):
        whole = True
        for member in _indexed(place, size):
            # Not behind damage: how far it goes is known only together with the header that follows it.
            if whole and member.start - start >= _PARTITION_BYTES:
                yield start, member.start
                start = member.start
            whole = not member.damage
    yield start, size


def _indexed(place: Place, size: int) -> Iterator[TarMember]:
    with place.open() as file:
        try:
            yield from index(file, size)
        except OSError as error:
            raise _unreadable(place, error) from error


def _unreadable(place: Place, error: OSError) -> DataError:
    return DataError(f"{place}: cannot be read: {error}; check that every worker reaches it")


def _labels_of_interest(archives: Sequence[Facts], file: Facts, storage: Storage, is_wrong: IsWrong) -> Extremes:
    """The first image that is there and has a label of interest, with the least label of the file."""
    labels = _labels(storage, file.uri, (file.bytes, file.modified_ns))
    # Seldom there are any, and only then the headers are gone through: a label file may name more images.
    if not is_wrong(labels.values).any():
        return Extremes()
    for archive in archives:
        place = storage.place(archive.uri)
        with place.open() as opened:
            for member in _members(opened, archive.bytes, start=0):
                at = labels.find(posixpath.basename(member.name))
                if at is not None and not member.damage and is_wrong(labels.values[at : at + 1])[0]:
                    return _seen(labels, at) + _seen(labels, int(labels.values.argmin()))
    return Extremes()


def _seen(labels: Labels, at: int) -> Extremes:
    row = f"{labels.file}, at {labels.base_name(at)}"
    return Extremes(seen=(Seen(value=int(labels.values[at]), row=row),))


# -- rows --


@lru_cache(maxsize=2)  # for training and validation
def _labels(storage: Storage, uri: str, state: tuple[int, int | None]) -> Labels:
    del state  # another state is another key
    return Labels.read(storage.place(uri))


def _members(pieces: Readable, stop: int, *, start: int) -> Iterator[TarMember]:
    """The members of a part of an archive; for a member that is an archive itself, the members of that."""
    for member in index(pieces, stop, start=start, links=True):
        if not member.name.lower().endswith(".tar"):
            yield member
            continue
        # An archive within that is cut short is told of, and its members are read as far as they are there.
        if member.damage:
            yield member
        if not member.is_link:
            yield from index(pieces, member.offset + member.bytes, start=member.offset, links=True)


def _row(pieces: "_Pieces", member: TarMember, labels: Labels, place: Place) -> NamedRow | None:
    base = posixpath.basename(member.name)
    # By base name: label files and archives differ in their directories.
    label = labels.of(base)
    expected = label is not None or base.lower().endswith(IMAGE_SUFFIXES)
    if member.damage:
        meant = expected or not member.is_link or base.lower().endswith(".tar")
        return _damaged(member, member.damage, place) if meant else None
    # macOS's own attributes beside a file, with the file's name and suffix.
    if base.startswith("._"):
        return None
    # By its first bytes: names lie (ImageNet has a PNG named .JPEG).
    if not is_encoded(pieces.slice(member.offset, min(member.bytes, 64))):
        return _damaged(member, "its bytes are no image", place) if expected else None
    if label is None:
        return _damaged(member, f"no label in {labels.file}", place)
    if member.bytes > LARGEST_IMAGE:
        return _damaged(member, f"{member.bytes} bytes are more than an image has", place)
    return NamedRow(name=member.name, image=pieces.slice(member.offset, member.bytes), label=label)


def _damaged(member: TarMember, why: str, place: Place) -> NamedRow:
    named = f"{member.name}: " if member.name else ""
    return NamedRow(name=member.name, error=f"{place.uri}: at offset {member.offset}: {named}{why}")


class _Pieces:
    """A file that is read in large pieces and never beyond `stop`; it answers with views of the pieces."""

    def __init__(self, place: Place, *, stop: int) -> None:
        self._place = place
        self._file = place.open()
        self._stop = stop
        self._least = _LOCAL_READ_BYTES if place.local else _REMOTE_READ_BYTES
        self._piece = memoryview(b"")
        self._start = 0
        self._at = 0
        self.fetched_bytes = 0
        """Of pieces, since somebody set this to 0."""

    def __enter__(self) -> "_Pieces":
        return self

    def __exit__(self, *failure: object) -> None:
        self._file.close()

    def seek(self, offset: int, /) -> None:
        self._at = offset

    def read(self, size: int, /) -> bytes:
        return bytes(self.slice(self._at, min(size, self._stop - self._at)))

    def slice(self, offset: int, size: int) -> memoryview:
        """These bytes, which must lie before `stop`."""
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._piece):
            # Never beyond `stop`, where another task's part begins.
            self._fetch(offset, max(size, min(self._least, self._stop - offset)))
            begin = 0
        return self._piece[begin : begin + size]

    def _fetch(self, offset: int, size: int) -> None:
        begin = offset - self._start
        rest = self._piece[begin:] if begin >= 0 else self._piece[:0]  # is not read again
        # A new buffer for each piece: rows of the last one may still be waiting in a batch.
        buffer = memoryview(pa.allocate_buffer(size)).cast("B")
        buffer[: len(rest)] = rest
        filled = len(rest)
        try:
            # Past Python's own buffer, which would copy every byte once more.
            self._file.raw.seek(offset + filled, os.SEEK_SET)
            # A read may give fewer bytes than asked for; 0 is the end.
            while filled < size and (count := self._file.raw.readinto(buffer[filled:])):
                filled += count
        except OSError as error:
            raise _unreadable(self._place, error) from error
        if filled < size:
            raise DataError(
                f"{self._place}: {filled} bytes at offset {offset}, {size} are needed; the file has become shorter "
                "since it was listed: begin again"
            )
        self._piece, self._start = buffer, offset
        self.fetched_bytes += size
