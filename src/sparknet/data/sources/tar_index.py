"""Where the members of a tar archive lie, found by walking its headers; nothing is ever unpacked.

Python's `tarfile` takes twice as long for it, ends at the first damage without saying that there is more behind it,
and reads names and records of any size that a file claims. Formats: POSIX 1988 and 2001 (IEEE Std 1003.1, pax), the
GNU manual's "Basic Tar Format", and what was before them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["BLOCK", "Readable", "TarMember", "index"]

BLOCK = 512
"""Headers and data begin at multiples of this many bytes."""

_ZEROS = bytes(BLOCK)
_SCAN_BYTES = 1 << 20
_MOST_EXTENSION_BYTES = 1 << 20  # of a long name or a set of pax records; a file may claim any size
_MOST_EXTENSIONS = 16  # before one header; of each kind one makes sense
_MOST_MAP_BLOCKS = 256
_REGULAR = b"0\x007"
_WITHOUT_DATA = b"123456"  # links, devices, directories, pipes: whatever size their headers say
_LINKS = b"12"
_SPARSE = ord("S")
_PAX, _LONG_NAME, _OTHER_EXTENSIONS = b"xX", b"L", b"Kg"  # long link names and global records name no member


class Readable(Protocol):
    """What `index` needs of a file."""

    def seek(self, offset: int, /) -> object:
        """Go to a byte."""
        ...

    def read(self, size: int, /) -> bytes:
        """Read this many bytes; fewer only at the end."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TarMember:
    """One regular file of an archive, or a damaged stretch of it. Offsets are the file's."""

    name: str
    """As the archive has it, with directories; "" for a stretch without a header."""
    start: int
    """Of its first header: here an archive can be cut."""
    offset: int
    """Of its data."""
    bytes: int
    """Of its data, as far as the archive holds them."""
    damage: str = ""
    """What is wrong with it; "" if nothing is."""
    is_link: bool = False
    """It is a hard or symbolic link, which holds no bytes of its own: that is its damage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    name: str
    kind: int
    stored: int
    offset: int
    sparse: bool


class _NoHeaderError(Exception):
    """The bytes at a place are no header; the message says why."""


def index(file: Readable, stop: int, *, start: int = 0, links: bool = False) -> Iterator[TarMember]:
    """Yield the regular files of the archive that lies in bytes `start` to `stop` (exclusive) of a file.

    Directories and devices are passed over, and links too unless they are asked for. What cannot be read is yielded
    with `damage`, and the walk goes on at the next header behind it, if there is one: a member that is cut short or
    sparse, and a stretch that holds no header. Behind an end marker more members may follow (archives that were put
    together), else anything.

    Args:
        file: is moved between the members; the caller may move it too.
        stop: the file's size, or where a part that was cut at some member's `start` ends.
        start: of the archive or part.
        links: yield hard and symbolic links too, as damage.
    """
    # Nothing at all is no archive, though an end marker alone is one: `tar` never writes 0 bytes.
    if start == stop:
        yield TarMember(name="", start=start, offset=start, bytes=0, damage="an empty file is no archive")
    position = start
    while position < stop:
        zeros = _skip_zeros(file, position, stop) - position
        try:
            # The end marker is two blocks of zeros, but archives that were put together by `cat` go on behind one:
            # so zeros are passed over, and the end is the end of the file.
            if position + zeros >= stop:
                return
            header = _read_header(file, position + zeros, stop)
        except _NoHeaderError as error:
            # Damage ends where the next sound header begins; `tarfile` would give up the rest.
            found = _find_header(file, position + zeros + BLOCK, stop)
            # What follows an end marker and holds no header is padding, not damage.
            if found < stop or zeros < 2 * BLOCK:
                yield _stretch(position + zeros, found, str(error))
            position = found
            continue
        member = _member(header, position + zeros, stop)
        if member is not None and (links or not member.is_link):
            yield member
        position = header.offset + -(-header.stored // BLOCK) * BLOCK


def _stretch(start: int, stop: int, why: str) -> TarMember:
    damage = f"{stop - start} bytes without a header: {why}"
    return TarMember(name="", start=start, offset=start, bytes=stop - start, damage=damage)


def _member(header: _Header, start: int, stop: int) -> TarMember | None:
    there = max(0, min(header.stored, stop - header.offset))
    is_link = header.kind in _LINKS
    damage = ""
    if there < header.stored:
        damage = f"cut short: {there} of {header.stored} bytes are there"
    elif header.sparse:
        damage = "a sparse file is not read: pack it without holes (tar without --sparse)"
    elif is_link:
        damage = "a link, whose bytes stand elsewhere: pack the file itself (tar --dereference --hard-dereference)"
    elif header.kind not in _REGULAR or (header.kind == 0 and header.name.endswith("/")):
        return None  # before there were kinds, a directory's name ended so
    elif not header.name:
        damage = "its header has no name"
    return TarMember(
        name=header.name, start=start, offset=header.offset, bytes=there, damage=damage, is_link=is_link
    )


def _read_header(file: Readable, position: int, stop: int) -> _Header:
    """Read the header at a place, with the long name and pax records before it."""
    name, records = b"", dict[bytes, bytes]()
    # Bounded, as every loop here: a damaged file must not be able to hold a task.
    for _ in range(_MOST_EXTENSIONS):
        block = _read(file, position, stop, BLOCK)
        # The checksum before any field is believed.
        size, kind = _checked(block), block[156]
        position += BLOCK
        if kind not in _PAX + _LONG_NAME + _OTHER_EXTENSIONS:
            return _header(block, size, name, records, _skip_sparse_map(file, position, stop, block))
        # Read into memory below, and the size is only the file's claim.
        if size > _MOST_EXTENSION_BYTES:
            raise _NoHeaderError(f"a name or pax records of {size} bytes")
        body = _read(file, position, stop, size)
        position += -(-size // BLOCK) * BLOCK
        if kind in _LONG_NAME:
            name = body.partition(b"\0")[0]
        elif kind in _PAX:
            records = _pax_records(body)
    raise _NoHeaderError(f"more than {_MOST_EXTENSIONS} names and pax records before one header")


def _header(block: bytes, size: int, name: bytes, records: dict[bytes, bytes], offset: int) -> _Header:
    # pax before the header, whose octal field ends at 8 GB: for larger files writers put anything there.
    if b"size" in records:
        size = _decimal(records[b"size"])
    # A sparse file of pax format has an invented name in header and path, and its own in a record of GNU's.
    path = records.get(b"GNU.sparse.name") or records.get(b"path") or name or _name(block)
    return _Header(
        # Names are bytes of any encoding; those that are not UTF-8 must still be told apart in messages.
        name=path.decode(errors="backslashreplace"),
        kind=block[156],
        stored=0 if block[156] in _WITHOUT_DATA else size,
        offset=offset,
        sparse=block[156] == _SPARSE or any(key.startswith(b"GNU.sparse.") for key in records),
    )


def _checked(block: bytes) -> int:
    """The size that a header states, if its checksum is right."""
    stated = _number(block[148:156])
    # The checksum counts its own field as blanks.
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if stated != total:
        high = sum(byte > 127 for byte in block[:148] + block[156:])
        if stated != total - 256 * high:  # some old programs summed signed bytes
            raise _NoHeaderError("the checksum is wrong")
    return _number(block[124:136])


def _number(field: bytes) -> int:
    """A number in octal digits, or in base 256 where the first bit is set (GNU)."""
    # GNU writes sizes above 8 GB and times before 1970 so.
    if field[0] & 0x80:
        # The sign of a number in two's complement.
        if field[0] & 0x40:
            raise _NoHeaderError("a negative number")
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if digits.strip(b"01234567"):
        raise _NoHeaderError(f"{digits!r} is no octal number")
    # Old programs leave a field blank that says nothing.
    return int(digits or b"0", 8)


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise _NoHeaderError(f"a pax record has {digits[:40]!r} for a number")
    return int(digits)


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""  # GNU has times there
    return prefix + b"/" + name if prefix else name


def _pax_records(body: bytes) -> dict[bytes, bytes]:
    """Read `LENGTH KEY=VALUE` lines, of which LENGTH counts every byte."""
    records = dict[bytes, bytes]()
    position = 0
    # Some writers fill up with zeros.
    while position < len(body) and body[position]:
        digits = body[position : position + 20].partition(b" ")[0]
        # In bytes, its own digits among them; a value may hold line breaks, so lines cannot be split.
        length = _decimal(digits)
        key, equals, value = body[position + len(digits) + 1 : position + length].partition(b"=")
        if not equals or not value.endswith(b"\n") or position + length > len(body):
            raise _NoHeaderError("pax records of another form")
        records[key] = value[:-1]
        position += length
    return records


def _skip_sparse_map(file: Readable, position: int, stop: int, block: bytes) -> int:
    """Where the data begin: directly behind the header, or behind the blocks that say where GNU's holes are."""
    # The header has room for four holes and a byte that says whether more blocks follow.
    more = block[156] == _SPARSE and block[482]
    for _ in range(_MOST_MAP_BLOCKS):
        if not more:
            return position
        more = _read(file, position, stop, BLOCK)[504]
        position += BLOCK
    raise _NoHeaderError(f"a sparse file with more than {_MOST_MAP_BLOCKS} blocks of holes")


def _read(file: Readable, position: int, stop: int, size: int) -> bytes:
    if position + size > stop:
        raise _NoHeaderError("the archive ends within a header")
    file.seek(position)
    data = file.read(size)
    if len(data) < size:
        raise _NoHeaderError("the file ends within a header")
    return data


def _skip_zeros(file: Readable, position: int, stop: int) -> int:
    """Where the next block that is not all zeros begins; `stop` if there is none."""
    size = BLOCK  # most often the first block is a header
    while position < stop:
        file.seek(position)
        piece = file.read(min(size, stop - position))
        if not piece:
            return stop
        if piece[0] or piece != (_ZEROS if len(piece) == BLOCK else bytes(len(piece))):
            zeros = len(piece) - len(piece.lstrip(b"\0"))
            return position + zeros // BLOCK * BLOCK
        position += len(piece)
        size = _SCAN_BYTES  # padding may be long
    return stop


def _find_header(file: Readable, position: int, stop: int) -> int:
    """Where the next header with a right checksum begins; `stop` if there is none."""
    while position < stop:
        file.seek(position)
        piece = file.read(min(_SCAN_BYTES, stop - position))
        if not piece:
            return stop
        at = piece.find(b"ustar")  # 257 bytes into every header since 1988
        while at >= 0:
            begin = at - 257
            if begin >= 0 and begin % BLOCK == 0 and _is_header(piece[begin : begin + BLOCK]):
                return position + begin
            at = piece.find(b"ustar", at + 1)
        position += len(piece)
    return stop


def _is_header(block: bytes) -> bool:
    try:
        return len(block) == BLOCK and _checked(block) >= 0
    except _NoHeaderError:
        return False
