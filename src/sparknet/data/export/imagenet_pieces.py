"""ImageNet's archives in pieces that tasks read independently: decode, resize, and say which chunk it goes to.

`ILSVRC2012_img_train.tar` holds one inner tar for each class (synset), `ILSVRC2012_img_val.tar` the images.
"""

import io
import zlib
from collections.abc import Container, Iterable, Iterator
from itertools import pairwise
from typing import IO, NamedTuple

import simplejpeg

from sparknet.data.export.imagenet_plan import ChunkPlan, Settings, Work
from sparknet.data.rows.image_codec import decode, encode_jpeg, resize
from sparknet.data.sources.tar_index import TarMember, index
from sparknet.data.storage.place import Place
from sparknet.errors import BadImage, DataError

__all__ = ["ImageRow", "cut_pieces", "make_image", "read_piece"]

_PIECE_BYTES = 64 << 20
_LEAST_PIECE_BYTES = 1 << 20
_PIECES = 64
"""Of a small archive about so many, so that every core has some."""
_HEADER_BYTES = 4096
_LARGEST_FILE_BYTES = 256 << 20
"""A larger file is not taken into memory to see whether it is an image."""


class ImageRow(NamedTuple):
    """What has become of one file of an archive."""

    chunk: int
    place: int
    """In the drawn order; -1 without a label."""
    offset: int
    """In the archive: of two files of one name the first counts."""
    name: str
    """Base name; empty for a stretch of the archive in which no header was found."""
    reason: str
    """Why it is left out; empty for an image."""
    image: bytes
    """The file to write, JPEG."""


def cut_pieces(archive: Place, plan: ChunkPlan) -> list[tuple[int, int]]:
    """Cut an archive by its headers; its images are not read.

    Args:
        archive: the tar of tars for train, a flat tar for val.
        plan: of the split.

    Returns:
        First byte of each piece, and the byte after its last.

    Raises:
        DataError: the archive is damaged, empty, or of the other kind.
    """
    with archive.open() as file:
        # Inner tars have 100 MB: reading ahead as for the images would fetch 8 MB for each of their headers.
        headers = io.BufferedReader(file.raw, _HEADER_BYTES) if plan.split == "train" else file
        starts = [member.start for member in _checked(archive, plan, index(headers, plan.source_bytes))]
    if not starts:
        raise DataError(f"{archive} holds no files; it should hold the {plan.split} images: fetch it again")
    least = max(_LEAST_PIECE_BYTES, min(_PIECE_BYTES, plan.source_bytes // _PIECES))
    # Between members, so that a piece is a tar stream by itself.
    cuts = [0]
    cuts.extend(start for start in starts if start - cuts[-1] >= least)
    return list(pairwise([*cuts, plan.source_bytes]))


def _checked(archive: Place, plan: ChunkPlan, members: Iterable[TarMember]) -> Iterator[TarMember]:
    for member in members:
        if member.damage:
            raise DataError(
                f"{archive}: at offset {member.start} {member.name or 'the archive'} is damaged: {member.damage}; "
                "fetch it again and compare its checksum with the published one"
            )
        if member.name.endswith(".tar") != (plan.split == "train"):
            content, other = {
                "train": ("one tar file for each class", "val"),
                "val": ("the images themselves", "train"),
            }[plan.split]
            raise DataError(
                f"{archive} holds {member.name} at offset {member.offset}; the {plan.split} archive holds "
                f"{content}: give ILSVRC2012_img_{plan.split}.tar as it was published, or this one as --{other}-tar"
            )
        yield member


def read_piece(work: Work, piece: tuple[int, int], wanted: Container[int]) -> Iterator[ImageRow]:
    """Read one piece and make the images of the wanted chunks; one image is in memory at a time.

    Yields:
        One row for each file whose chunk is wanted.

    Raises:
        DataError: the archive cannot be read.
    """
    start, stop = piece
    with work.archive.open() as file:
        for member in index(file, stop, start=start):
            if work.plan.split == "val":
                yield from _rows(work, file, member, wanted)
                continue
            for inner in index(file, member.offset + member.bytes, start=member.offset):
                yield from _rows(work, file, inner, wanted)


def _rows(work: Work, file: IO[bytes], member: TarMember, wanted: Container[int]) -> Iterator[ImageRow]:
    """The member's row, if its chunk is wanted."""
    name = member.name.rpartition("/")[2]
    place = work.place_of(name) if name else None
    if place is None:
        # Any chunk may tell of it, but always the same: who goes on must neither forget it nor tell it twice.
        chunk, place = zlib.crc32(f"{name}{member.start}".encode()) % work.plan.settings.chunks, -1
        reason = "" if name else f"the archive is damaged at offset {member.start}: {member.damage}"
        image = b""
    else:
        chunk, reason, image = work.plan.chunk_of(place), "", b""
        if chunk in wanted:  # the others are not decoded
            try:
                image = make_image(_content(file, member), work.plan.settings)
            except BadImage as error:
                reason = str(error)
    if chunk in wanted:
        yield ImageRow(chunk, place, member.start, name, reason, image)


def _content(file: IO[bytes], member: TarMember) -> bytes:
    if member.damage:
        raise BadImage(f"{member.damage}, at offset {member.start}")
    if member.bytes > _LARGEST_FILE_BYTES:
        raise BadImage(f"{member.bytes} bytes are more than an image has")
    file.seek(member.offset)
    return file.read(member.bytes)


def make_image(data: bytes, settings: Settings) -> bytes:
    """The JPEG file for a chunk from an image file of any size and kind.

    Raises:
        BadImage: it cannot be decoded.
    """
    pixels = decode(data, channels=3, order="rgb")
    size = (settings.height, settings.width)
    if pixels.shape[:2] == size and _is_plain_jpeg(data):
        return data  # encoded a second time it would lose quality a second time
    return encode_jpeg(resize(pixels, size, "exact"), quality=settings.quality)


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether every reader sees the same colour image in it: some turn it by its EXIF data and some do not."""
    return data[:2] == b"\xff\xd8" and b"Exif\0\0" not in data and simplejpeg.decode_jpeg_header(data)[2] == "YCbCr"
