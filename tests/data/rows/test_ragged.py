"""Rows of bytes: views of Arrow's memory, and back."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoded import cells_of
from sparknet.data.rows.ragged import Cells

FILES = [b"one", b"", b"three", b"\xff\x00"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_arrow_and_back(kind):
    array = pa.array(FILES, kind)
    cells = Cells.of(array)
    assert len(cells) == 4
    assert [bytes(cell) for cell in cells] == FILES
    assert bytes(cells[2]) == b"three"
    assert cells.sizes.tolist() == [3, 0, 5, 2]
    assert cells.to_arrow() == pa.array(FILES, pa.large_binary())
    assert cells.data.ctypes.data == array.buffers()[2].address  # not copied


@given(
    files=st.lists(st.binary(max_size=9), max_size=12),
    ends=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    large=st.booleans(),
)
def test_parts_of_arrays_are_their_rows(files, ends, large):
    start, stop = sorted(min(end, len(files)) for end in ends)
    array = pa.array(files, pa.large_binary() if large else pa.binary())
    wanted = files[start:stop]
    for part in (Cells.of(array.slice(start, stop - start)), Cells.of(array).slice(start, stop)):
        assert [bytes(cell) for cell in part] == wanted
        assert part.to_arrow().to_pylist() == wanted
    assert [bytes(cell) for cell in cells_of(wanted)] == wanted


def test_nothing():
    cells = Cells.of(pa.array([], pa.binary()))
    assert (len(cells), list(cells), cells.sizes.tolist()) == (0, [], [])
    assert cells.to_arrow() == pa.array([], pa.large_binary())


@pytest.mark.parametrize("row", [-1, 4])
def test_rows_outside(row):
    with pytest.raises(IndexError, match=f"row {row} of 4"):
        Cells.of(pa.array(FILES))[row]
