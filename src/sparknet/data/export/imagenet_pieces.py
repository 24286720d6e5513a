"""ImageNet's archives in pieces that tasks read independently: decode, resize, and say which chunk it goes to.

`ILSVRC2012_img_train.tar` holds one inner tar for each class (synset), `ILSVRC2012_img_val.tar` the images.
"""

import io
import itertools
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Literal, NamedTuple

import simplejpeg

from sparknet.data.export.imagenet_plan import Plan, Settings
from sparknet.data.rows.image_codec import decode, encode_jpeg, resize
from sparknet.data.sources.tar_index import Member, index
from sparknet.data.storage.place import Place
from sparknet.errors import BadImage, DataError

__all__ = ["Kind", "Piece", "Row", "cut_pieces", "make_image", "read_piece"]

Kind = Literal["image", "corrupt", "missing", "unlabelled"]

_PIECE_BYTES = 64 << 20
_LEAST_PIECE_BYTES = 1 << 20
_PIECES = 64
"""Of a small archive at least so many, so that every core has some."""
_HEADER_BYTES = 4096
_LARGEST_FILE_BYTES = 256 << 20
"""A larger file is not taken into memory to see whether it is an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A stretch of an archive that is a tar stream by itself, and what the label file promises in it."""

    start: int
    """Its first byte."""
    stop: int
    """The byte after its last."""
    names: tuple[str, ...]
    """Base names of the images with a label."""
    places: tuple[int, ...]
    """Of these images in the drawn order."""
    home: int
    """The chunk whose report counts the files without a label."""


class Row(NamedTuple):
    """What has become of one image."""

    chunk: int
    place: int
    """In the drawn order; -1 without a label."""
    kind: Kind
    name: str
    reason: str
    """Why it is corrupt."""
    image: bytes
    """The file to write, JPEG; empty unless there is one."""


def cut_pieces(archive: Place, plan: Plan, names: Sequence[str], places: Sequence[int]) -> list[Piece]:
    """Cut an archive by its headers; its images are not read.

    Args:
        archive: the tar of tars for train, a flat tar for val.
        plan: of the split.
        names: the label file's entries, for train with the synset before a slash.
        places: of these entries in the drawn order.

    Returns:
        Pieces in the order of the archive; together they have every entry, and those that the archive knows nothing
        of stand in the first.

    Raises:
        DataError: the archive is damaged, empty, or of the other kind.
    """
    with archive.open() as file:
        if plan.split == "train":
            cut = _inner_tars
            # inner tars have 100 MB: reading ahead as for the images would fetch 8 MB for each of their headers
            headers = io.BufferedReader(file.raw, _HEADER_BYTES)
        else:
            cut, headers = _stretches, file
        found = list(cut(archive, _whole(archive, index(headers, plan.source_bytes)), plan, names))
    if not found:
        raise DataError(f"{archive} holds no files; it should hold the {plan.split} images: fetch it again")
    met = set(itertools.chain.from_iterable(entries for _, _, entries in found))
    found[0][2].extend(entry for entry in range(len(names)) if entry not in met)
    return [
        Piece(
            start=start,
            stop=stop,
            names=tuple(_base(names[entry]) for entry in entries),
            places=tuple(places[entry] for entry in entries),
            home=plan.chunk_of(places[entries[0]]) if entries else 0,
        )
        for start, stop, entries in found
    ]


def piece_bytes(archive_bytes: int) -> int:
    """How much of an archive one task should read at least."""
    return max(_LEAST_PIECE_BYTES, min(_PIECE_BYTES, archive_bytes // _PIECES))


_Found = tuple[int, int, list[int]]
"""Start, stop and entries of a piece."""


def _whole(archive: Place, members: Iterable[Member]) -> Iterator[Member]:
    for member in members:
        if member.damage:
            raise DataError(
                f"{archive}: at offset {member.start} {member.name or 'the archive'} is damaged: {member.damage}; "
                "fetch it again and compare its checksum with the published one"
            )
        yield member


def _inner_tars(archive: Place, members: Iterable[Member], plan: Plan, names: Sequence[str]) -> Iterator[_Found]:
    synsets = defaultdict[str, list[int]](list)
    for entry, name in enumerate(names):
        synsets[name.rpartition("/")[0].rpartition("/")[2]].append(entry)
    for member in members:
        if not member.name.endswith(".tar"):
            raise DataError(
                f"{archive} holds {member.name} at offset {member.offset}; the {plan.split} archive holds one tar "
                "file for each class: give ILSVRC2012_img_train.tar as it was published, or this one as --val-tar"
            )
        entries = synsets.pop(_base(member.name).removesuffix(".tar"), [])
        yield member.offset, member.offset + member.bytes, entries


def _stretches(archive: Place, members: Iterable[Member], plan: Plan, names: Sequence[str]) -> Iterator[_Found]:
    known = {_base(name): entry for entry, name in enumerate(names)}
    least = piece_bytes(plan.source_bytes)
    start, entries = 0, list[int]()
    for member in members:
        if member.name.endswith(".tar"):
            raise DataError(
                f"{archive} holds {member.name} at offset {member.offset}; the {plan.split} archive holds the "
                "images themselves: give a tar of tars as --train-tar"
            )
        if member.start - start >= least:
            yield start, member.start, entries
            start, entries = member.start, []
        entry = known.pop(_base(member.name), None)
        entries.extend([] if entry is None else [entry])
    if len(known) < len(names):
        yield start, plan.source_bytes, entries


def read_piece(plan: Plan, archive: Place, piece: Piece, wanted: Container[int]) -> Iterator[Row]:
    """Read one piece and make the images of the wanted chunks; one image is in memory at a time.

    Yields:
        One row for each entry of the piece, and for each file without one, whose chunk is wanted.

    Raises:
        DataError: the archive cannot be read.
    """
    left = dict(zip(piece.names, piece.places, strict=True))
    lost = ""
    with archive.open() as file:
        for member in index(file, piece.stop, start=piece.start):
            name = _base(member.name)
            place = left.pop(name, None)
            if not name:
                lost = f"the archive is damaged at offset {member.start}: {member.damage}"
            elif place is None:
                if piece.home in wanted:
                    yield Row(piece.home, -1, "unlabelled", name, "", b"")
            elif plan.chunk_of(place) in wanted:
                yield _row(plan, place, file, member)
    for name, place in left.items():
        if plan.chunk_of(place) in wanted:
            # behind a damaged stretch nobody can say what was in it
            yield Row(plan.chunk_of(place), place, "corrupt" if lost else "missing", name, lost, b"")


def _row(plan: Plan, place: int, file: IO[bytes], member: Member) -> Row:
    chunk, name = plan.chunk_of(place), _base(member.name)
    try:
        if member.damage:
            raise BadImage(f"{member.damage}, at offset {member.start}")
        if member.bytes > _LARGEST_FILE_BYTES:
            raise BadImage(f"{member.bytes} bytes are more than an image has")
        file.seek(member.offset)
        return Row(chunk, place, "image", name, "", make_image(file.read(member.bytes), plan.settings))
    except BadImage as error:
        return Row(chunk, place, "corrupt", name, str(error), b"")


def make_image(data: bytes, settings: Settings) -> bytes:
    """The JPEG file for a chunk from an image file of any size and kind.

    Colour JPEG files that have the size already are checked by decoding and stay as they are, so as not to lose
    quality a second time; but those with EXIF data, which readers may or may not turn by it, are written anew.

    Raises:
        BadImage: it cannot be decoded.
    """
    pixels = decode(data, channels=3, order="rgb")
    size = (settings.height, settings.width)
    if pixels.shape[:2] == size and _is_plain_jpeg(data):
        return data
    return encode_jpeg(resize(pixels, size, "exact"), quality=settings.quality)


def _is_plain_jpeg(data: bytes) -> bool:
    return data[:2] == b"\xff\xd8" and b"Exif\0\0" not in data and simplejpeg.decode_jpeg_header(data)[2] == "YCbCr"


def _base(name: str) -> str:
    return name.rpartition("/")[2]
