"""Messages written as Caffe's text files are: one field a line, two spaces a level, numbers as short as they go."""

from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from sparknet.caffe.schema import PACKED
from sparknet.caffe.schema.strings import readable
from sparknet.errors import NetError

__all__ = ["format_text"]

_ESCAPES = {ord("\n"): r"\n", ord("\r"): r"\r", ord("\t"): r"\t", ord('"'): r"\"", ord("\\"): r"\\"}
_ESCAPED = {code: f"\\{code:03o}" for code in (*range(0x20), 0x7F)} | _ESCAPES
_ESCAPED_BYTES = {code: f"\\{code:03o}" for code in range(0x80, 0x100)} | _ESCAPED


def format_text(message: Message) -> str:
    """Write a message as prototxt, its fields in the order of their numbers.

    `parse_text` reads the same message back. Three things have no text: fields that the schema does not know are
    left out, the pieces of a blob's data become one, and a NaN keeps no payload.

    Raises:
        NetError: a blob's data is no whole number of floats.
    """
    lines: list[str] = []
    _print(message, "", lines)
    return "".join(lines)


def _print(message: Message, indent: str, lines: list[str]) -> None:
    """Append the lines of a message's fields."""
    for field, value in message.ListFields():
        code = PACKED.get(f"{message.DESCRIPTOR.name}.{field.name}")
        if code is not None:
            # protobuf's own printer would write such bytes as one string, which Caffe cannot read as numbers.
            for text in _numbers(b"".join(value), code, field.name):
                lines.append(f"{indent}{field.name}: {text}\n")
            continue
        for element in value if field.is_repeated else (value,):
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                lines.append(f"{indent}{field.name} {{\n")
                _print(element, indent + "  ", lines)
                lines.append(f"{indent}}}\n")
            else:
                lines.append(f"{indent}{field.name}: {_scalar(field, element)}\n")


def _numbers(packed: bytes, code: str, name: str) -> list[str]:
    """Return the numbers of a blob's packed data as text."""
    dtype = np.dtype("<f4" if code == "f" else "<f8")
    if len(packed) % dtype.itemsize:
        raise NetError(
            f"{name} of a blob has {len(packed)} bytes; each number takes {dtype.itemsize}: the file is damaged"
        )
    write = _float32 if code == "f" else _float64
    return [write(number) for number in np.frombuffer(packed, dtype).tolist()]


def _scalar(field: FieldDescriptor, value: Any) -> str:
    """Return one value as text."""
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            # Bytes are what protobuf hands out where a binary file holds no UTF-8.
            text = readable(value) if isinstance(value, bytes) else value
            return f'"{text.translate(_ESCAPED)}"'
        case FieldDescriptor.TYPE_BYTES:
            return f'"{value.decode("latin-1").translate(_ESCAPED_BYTES)}"'
        case FieldDescriptor.TYPE_BOOL:
            return "true" if value else "false"
        case FieldDescriptor.TYPE_ENUM:
            return _enum_name(field, value)
        case FieldDescriptor.TYPE_FLOAT:
            return _float32(value)
        case FieldDescriptor.TYPE_DOUBLE:
            return _float64(value)
        case _:
            return str(value)


def _enum_name(field: FieldDescriptor, value: int) -> str:
    """Return the name of an enum's value; the schema's enums are closed, so every value has one."""
    assert field.enum_type is not None
    return field.enum_type.values_by_number[value].name


def _float32(value: float) -> str:
    """Return the shortest decimal that reads as this float32: 0.1, and not 0.10000000149011612."""
    exact = np.float32(value)
    if not np.isfinite(exact):
        return str(exact)
    # as a person writes it: 0.0001, and only far from 1 with an exponent
    plain = exact == 0 or 1e-6 <= abs(exact) < 1e9
    text = (
        np.format_float_positional(exact, trim="-")
        if plain
        else np.format_float_scientific(exact, trim="-", exp_digits=1)
    )
    # A reader rounds to float64 first. In the rare case that this shifts the result, all digits are written.
    return text if np.float32(float(text)) == exact else repr(value)


def _float64(value: float) -> str:
    """Return the shortest decimal that reads as this float64."""
    return repr(value).removesuffix(".0")
