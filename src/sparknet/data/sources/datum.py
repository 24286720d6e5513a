"""Caffe's Datum, the record of its databases: one image or array with its label, as protobuf lays it on the wire.

Fields: channels 1, height 2, width 3, data 4 (bytes), label 5, float_data 6 (packed or not), encoded 7. They are
read by hand, since a protobuf message would copy every image once more than is needed.
"""

import struct
from dataclasses import dataclass

import numpy as np

from sparknet.errors import DataError

__all__ = ["Datum", "parse", "write"]

_CHANNELS, _HEIGHT, _WIDTH, _DATA, _LABEL, _FLOATS, _ENCODED = range(1, 8)
_VARINT, _FIXED64, _BYTES, _GROUP, _END, _FIXED32 = range(6)  # wire types

_FLOAT_TAG = _FLOATS << 3 | _FIXED32
_NOT_ENCODED = bytes((_ENCODED << 3, 0))
_TAGGED_FLOAT = np.dtype([("tag", "u1"), ("value", "<f4")])
_TAG_BYTES = _LENGTH_BYTES = 5  # what protobuf reads at most of a tag, of a length and of a number
_NUMBER_BYTES = 10
_LONGEST = (1 << 31) - 1
_DEEPEST = 100  # groups in groups that protobuf follows


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Datum:
    """One record. The numbers are as written: whether they fit each other is for the reader to say."""

    channels: int = 0
    """Of the array; 0 for encoded images, whose bytes say it."""
    height: int = 0
    """In pixels; 0 for encoded images."""
    width: int = 0
    """In pixels; 0 for encoded images."""
    data: memoryview = memoryview(b"")  # noqa: RUF009 - immutable
    """Pixels uint8 in (channels, height, width) order, or an encoded image: a view of the parsed bytes."""
    label: int = 0
    """The class; negative where somebody wrote it so."""
    float_data: np.ndarray | None = None
    """float32 [n] in (channels, height, width) order; None without any."""
    encoded: bool = False
    """`data` is an image file (JPEG, PNG, …)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (self.channels, self.height, self.width)


def parse(value: bytes | memoryview) -> Datum:
    """Read one record as protobuf does: in any order, the last of a field wins, unknown fields are skipped.

    Args:
        value: the whole record; `data` of the result is a view of it.

    Raises:
        DataError: these are no Datum's bytes, or not all of them; says at which offset what is wrong.
    """
    view = memoryview(value)
    # Nearly all records have one form, which is read without a loop over fields.
    try:
        return _written_by_caffe(view) or _in_any_order(view)
    except IndexError:
        raise DataError(f"offset {len(view)}: the record ends within a number") from None


def write(
    *,
    shape: tuple[int, int, int] | None = None,
    data: bytes | None = None,
    label: int | None = None,
    float_data: np.ndarray | None = None,
    encoded: bool | None = None,
) -> bytes:
    """Write one record: the bytes that protobuf would write.

    Args:
        shape: (channels, height, width).
        data: pixels uint8 in that order, or an encoded image.
        label: -2**31 to 2**31 - 1.
        float_data: float32 [n], written as Caffe does, one tag for each.
        encoded: whether `data` is an image file. What is None is left out.

    Raises:
        DataError: a number does not fit 32 bits, or `data` 2 GiB.
    """
    parts: list[bytes] = []
    for field, number in zip((_CHANNELS, _HEIGHT, _WIDTH), shape or (), strict=False):
        parts += (_tag(field, _VARINT), _int32(number))
    if data is not None:
        if len(data) > _LONGEST:
            raise DataError(f"{len(data)} bytes in one record; it takes at most {_LONGEST}: make the image smaller")
        parts += (_tag(_DATA, _BYTES), _varint(len(data)), data)
    if label is not None:
        parts += (_tag(_LABEL, _VARINT), _int32(label))
    if float_data is not None:
        # Caffe's schema does not pack them: a tag before each, written as one array of tag and value.
        tagged = np.empty(float_data.size, _TAGGED_FLOAT)
        tagged["tag"], tagged["value"] = _FLOAT_TAG, float_data.reshape(-1)
        parts.append(tagged.tobytes())
    if encoded is not None:
        parts += (_tag(_ENCODED, _VARINT), _varint(int(encoded)))
    return b"".join(parts)


def _written_by_caffe(view: memoryview) -> Datum | None:
    """Read pixels and a label in order, with nothing else, which nearly every database holds; else None."""
    at, numbers = 0, [0, 0, 0]
    try:
        for field in (_CHANNELS, _HEIGHT, _WIDTH):
            # Tag and wire type (varint, 0) of a low field number are one byte.
            if view[at] != field << 3:
                return None
            numbers[field - 1], at = _number(view, at + 1, _NUMBER_BYTES)
        if view[at] != _DATA << 3 | _BYTES:
            return None
        size, start = _number(view, at + 1, _LENGTH_BYTES)
        end = start + size
        # Beyond the record this is an IndexError, so a length that claims too much is found here.
        if view[end] != _LABEL << 3:
            return None
        label, at = _number(view, end + 1, _NUMBER_BYTES)
    except IndexError:
        return None
    # Nothing may follow but "not encoded": three bytes tell, for that takes two.
    if bytes(view[at : at + 3]) not in (b"", _NOT_ENCODED):
        return None
    channels, height, width = map(_signed, numbers)
    return Datum(channels=channels, height=height, width=width, data=view[start:end], label=_signed(label))


def _in_any_order(view: memoryview) -> Datum:
    numbers: dict[int, int] = {}
    data, floats = memoryview(b""), list[np.ndarray]()
    at, end = 0, len(view)
    while at < end:
        begin = at
        field, kind, at = _read_tag(view, at)
        # A field with another wire type than the schema's is an unknown field to protobuf, and skipped.
        if kind == _VARINT:
            numbers[field], at = _number(view, at, _NUMBER_BYTES)
        elif kind == _BYTES and field in (_DATA, _FLOATS):
            piece, at = _piece(view, at)
            if field == _DATA:
                # The last of a field wins, and is a view: nothing of the image is copied.
                data = piece
            else:
                floats.append(_packed(piece, at - len(piece)))
        elif kind == _FIXED32 and field == _FLOATS:
            # a tag of its own before every number
            values, at = _tagged(view, begin) if at == begin + 1 else _one_float(view, at)
            floats.append(values)
        else:
            at = _skip(view, begin)
    return Datum(
        channels=_signed(numbers.get(_CHANNELS, 0)),
        height=_signed(numbers.get(_HEIGHT, 0)),
        width=_signed(numbers.get(_WIDTH, 0)),
        data=data,
        label=_signed(numbers.get(_LABEL, 0)),
        float_data=_joined(floats),
        encoded=bool(numbers.get(_ENCODED, 0)),
    )


def _number(view: memoryview, at: int, longest: int) -> tuple[int, int]:
    """The unsigned number at an offset, and where it ends. An IndexError is the end of the record."""
    byte = view[at]
    if byte < 128:
        return byte, at + 1
    number = byte & 127
    for place in range(1, longest):
        byte = view[at + place]
        number |= (byte & 127) << 7 * place
        if byte < 128:
            # Ten bytes hold 70 bits, of which protobuf keeps 64.
            return number & 0xFFFF_FFFF_FFFF_FFFF, at + place + 1
    raise DataError(f"offset {at}: a number of more than {longest} bytes")


def _read_tag(view: memoryview, at: int) -> tuple[int, int, int]:
    """Field, wire type, and where the value begins."""
    tag, after = _number(view, at, _TAG_BYTES)
    # Field 0 does not exist, and tags have 32 bits.
    if not 8 <= tag < 1 << 32 or tag & 7 > _FIXED32:
        raise DataError(f"offset {at}: {tag:#x} is no field's tag")
    return tag >> 3, tag & 7, after


def _piece(view: memoryview, at: int) -> tuple[memoryview, int]:
    size, start = _number(view, at, _LENGTH_BYTES)
    # Checked by hand: a slice of a view that is too long is cut short without a word.
    if size > len(view) - start:
        raise DataError(f"offset {at}: a field of {size} bytes, and the record ends after {len(view) - start}")
    return view[start : start + size], start + size


def _skip(view: memoryview, at: int) -> int:
    """Where the field at an offset ends, with all that a group holds."""
    # A list and no recursion: nested groups in a damaged record must not end in Python's stack.
    groups: list[int] = []
    while True:
        begin = at
        field, kind, at = _read_tag(view, at)
        if kind == _VARINT:
            _, at = _number(view, at, _NUMBER_BYTES)
        elif kind == _BYTES:
            _, at = _piece(view, at)
        elif kind == _GROUP:
            groups.append(field)
        elif kind == _END:
            if not groups or groups.pop() != field:
                raise DataError(f"offset {begin}: the end of group {field}, which is not open")
        else:
            at += 8 if kind == _FIXED64 else 4
        if at > len(view) or len(groups) > _DEEPEST:
            raise DataError(f"offset {begin}: field {field} goes beyond the record's end or is nested too deeply")
        if not groups:
            return at


def _packed(piece: memoryview, at: int) -> np.ndarray:
    if len(piece) % 4:
        raise DataError(f"offset {at}: float_data of {len(piece)} bytes, which is no multiple of 4")
    # At any offset, aligned or not, and without a copy.
    return np.frombuffer(piece, "<f4")


def _one_float(view: memoryview, at: int) -> tuple[np.ndarray, int]:
    if at + 4 > len(view):
        raise DataError(f"offset {at}: the record ends within float_data")
    return np.frombuffer(view, "<f4", count=1, offset=at), at + 4


def _tagged(view: memoryview, at: int) -> tuple[np.ndarray, int]:
    """The run of tagged numbers from an offset on, and where it ends."""
    left, count = (len(view) - at) // _TAGGED_FLOAT.itemsize, 16
    if not left:
        raise DataError(f"offset {at}: the record ends within float_data")
    while True:
        # a longer look only after a full one: looking at all that is left would make many short runs slow
        pairs = np.frombuffer(view, _TAGGED_FLOAT, count=min(count, left), offset=at)
        # As one array of tag and value: ten thousand floats would be ten thousand calls.
        ours = pairs["tag"] == _FLOAT_TAG
        run = len(pairs) if ours.all() else int(ours.argmin())
        if run < count or count >= left:
            return pairs["value"][:run], at + run * _TAGGED_FLOAT.itemsize
        count *= 4


def _joined(floats: list[np.ndarray]) -> np.ndarray | None:
    values = np.concatenate(floats).astype(np.float32, copy=False) if floats else None
    return values if values is not None and values.size else None


def _signed(number: int) -> int:
    """The int32 in the low bits, which is what protobuf keeps of a longer number."""
    # Negative int32 travel as ten bytes, sign-extended to 64 bits.
    number &= 0xFFFF_FFFF
    return number - (1 << 32) if number >> 31 else number


def _tag(field: int, kind: int) -> bytes:
    return bytes((field << 3 | kind,))


def _int32(number: int) -> bytes:
    try:
        struct.pack("<i", number)
    except struct.error:
        raise DataError(f"{number} does not fit 32 bits: Datum's numbers go from -2**31 to 2**31 - 1") from None
    return _varint(number & 0xFFFF_FFFF_FFFF_FFFF)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
