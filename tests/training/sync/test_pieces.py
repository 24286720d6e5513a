"""Bytes in pieces: all of them, in order, none longer than allowed."""

import pytest

from sparknet.training.sync.pieces import cut


class Counted:
    """Streamed bytes that tell how they were asked for."""

    asked = 0

    def __len__(self):
        return 3

    def pieces(self, most_bytes):
        self.asked = most_bytes
        yield from (b"a", b"bc")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("most_bytes", [1, 3, 4, 10, 11])
def test_bytes_are_cut_without_being_copied(kind, most_bytes):
    data = bytearray(b"0123456789")
    given = data if kind is bytearray else kind(data)
    pieces = list(cut(given, most_bytes))
    assert b"".join(pieces) == data
    assert [len(piece) for piece in pieces[:-1]] == [most_bytes] * (10 // most_bytes - (10 % most_bytes == 0))
    assert pieces[0].obj is (given if kind is bytes else data)


def test_nothing_has_no_pieces():
    assert list(cut(b"", 4)) == []


def test_bytes_of_another_item_size_count_as_bytes():
    assert [len(piece) for piece in cut(memoryview(b"01234567").cast("I"), 3)] == [3, 3, 2]


def test_streamed_bytes_are_asked_for_pieces():
    streamed = Counted()
    assert list(cut(streamed, 7)) == [b"a", b"bc"]
    assert streamed.asked == 7
