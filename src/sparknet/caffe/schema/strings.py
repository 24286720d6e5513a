r"""Strings of Caffe's files that are no UTF-8: GBK or Latin-1, say, as older editors write them.

Caffe's strings are bytes, and it goes on with any. Here a byte that belongs to no character is written as its
escape sequence, `\xd6`: so names stay apart, and text and binary files of the same bytes have the same names.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

__all__ = ["readable", "readable_strings"]

M = TypeVar("M", bound=Message)


def readable(content: bytes) -> str:
    r"""Bytes as text: `\xd6` for each byte that is no UTF-8."""
    return content.decode("utf-8", "backslashreplace")


def readable_strings(message: M) -> M:
    """A message whose strings are all text: itself, or a copy where one of a binary file's was not."""
    # protobuf hands such a string out as bytes, and raises ValueError where the message that has it is copied.
    if not any(True for _ in _raw(message)):
        return message
    copy = type(message).FromString(message.SerializePartialToString())
    for holder, field, place in list(_raw(copy)):
        value = getattr(holder, field)
        if place is None:
            setattr(holder, field, readable(value))
        else:
            value[place] = readable(value[place])
    return copy


def _raw(message: Message) -> Iterator[tuple[Message, str, int | None]]:
    """Strings that are none: in which message, of which field, and in a list at which place."""
    for field, value in message.ListFields():
        found: Any = value
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in found if field.is_repeated else (found,):
                yield from _raw(inner)
        elif field.type == FieldDescriptor.TYPE_STRING:
            for place, text in enumerate(found if field.is_repeated else (found,)):
                if isinstance(text, bytes):
                    yield message, field.name, place if field.is_repeated else None
