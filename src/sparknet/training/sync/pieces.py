"""Bytes that are too many to be held or sent at once."""

from collections.abc import Iterator
from typing import Protocol

__all__ = ["Bytes", "Streamed", "cut"]

Bytes = bytes | bytearray | memoryview
"""What may be read without being copied."""


class Streamed(Protocol):
    """Bytes that are made when they are asked for."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def pieces(self, most_bytes: int) -> Iterator[Bytes]:
        """All of them in order, each piece but the last of `most_bytes`; it holds until the next is asked for."""
        ...


def cut(data: Bytes | Streamed, most_bytes: int) -> Iterator[Bytes]:
    """The bytes in pieces, as `Streamed.pieces` gives them."""
    if not isinstance(data, bytes | bytearray | memoryview):
        yield from data.pieces(most_bytes)
        return
    view = memoryview(data).cast("B")
    for at in range(0, len(view), most_bytes):
        yield view[at : at + most_bytes]
