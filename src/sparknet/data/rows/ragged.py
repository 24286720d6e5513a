"""Rows of bytes of any length, as Arrow and the shards hold encoded images."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["Cells"]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Cells:
    """Rows of bytes, one after the other in one piece of memory."""

    data: np.ndarray
    """The bytes of all rows, and maybe others before and behind them, uint8 [any]."""
    edges: np.ndarray
    """Where in `data` each row begins and, last, where the last one ends, int64 [rows + 1]."""

    @classmethod
    def of(cls, array: Any) -> "Cells":
        """View an Arrow array, binary or large_binary and without nulls; the bytes are not copied."""
        if not len(array):
            # An array without rows may come without buffers.
            return cls(data=np.zeros(0, np.uint8), edges=np.zeros(1, np.int64))
        _, edges, data = array.buffers()
        kind = np.int64 if pa.types.is_large_binary(array.type) else np.int32
        # A slice shares the buffers of its whole: its edges begin at the offset, and seldom at 0.
        here = np.frombuffer(edges, kind)[array.offset :][: len(array) + 1]
        stored = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        return cls(data=stored, edges=here.astype(np.int64, copy=False))

    def to_arrow(self) -> Any:
        """Wrap the rows as a large_binary array; the bytes are not copied."""
        # Cut to its own rows, or a slice would carry the bytes of its whole into the file.
        data = self.data[self.edges[0] : self.edges[-1]]
        edges = self.edges - self.edges[0]
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(self), [None, pa.py_buffer(edges), pa.py_buffer(data)]
        )

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __getitem__(self, row: int) -> memoryview:
        """The bytes of one row, counted from 0; not copied."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.data[self.edges[row] : self.edges[row + 1]].data

    def __iter__(self) -> Iterator[memoryview]:
        return (self[row] for row in range(len(self)))

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each row, int64 [rows]."""
        return np.diff(self.edges)

    def slice(self, start: int, stop: int) -> "Cells":
        """Rows `start` to `stop` (exclusive); nothing is copied."""
        return Cells(data=self.data, edges=self.edges[start : stop + 1])
