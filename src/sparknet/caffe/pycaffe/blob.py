"""Blobs as pycaffe shows them: arrays of data and of gradients that keep their memory from pass to pass."""

import math
import operator
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Blob", "Blobs"]

Array = NDArray[np.floating[Any]]
"""float32, or float64 in a net of that precision."""

_LEGACY_AXES = 4


class Blob:
    """A blob: `data`, `diff` and their shape.

    Both arrays are made of zeros when they are first looked at, and keep what was written as long as the blob does
    not outgrow its memory, as in Caffe (blob.cpp, Reshape): some layers write only what has changed.

    Args:
        shape: to begin with.
        dtype: of both arrays.
    """

    def __init__(self, shape: tuple[int, ...] = (), dtype: np.dtype[Any] | type = np.float32) -> None:
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._memory: dict[str, Array] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self._shape

    @property
    def count(self) -> int:
        """Numbers in `data`."""
        return math.prod(self._shape)

    @property
    def data(self) -> Array:
        """The numbers, of `shape`; written in place: `blob.data[...] = values`."""
        return self._view("data")

    @property
    def diff(self) -> Array:
        """Their gradients, of `shape`; written in place too."""
        return self._view("diff")

    @property
    def num(self) -> int:
        """Size of the first of four axes; this and the next three are for blobs of at most four."""
        return self._legacy(0)

    @property
    def channels(self) -> int:
        """Size of the second axis, 1 where there is none."""
        return self._legacy(1)

    @property
    def height(self) -> int:
        """Size of the third axis, 1 where there is none."""
        return self._legacy(2)

    @property
    def width(self) -> int:
        """Size of the fourth axis, 1 where there is none."""
        return self._legacy(3)

    def reshape(self, *dims: SupportsIndex) -> None:
        """Take another shape; what was written stays where the memory suffices."""
        shape = tuple(operator.index(size) for size in dims)
        if any(size < 0 for size in shape):
            raise ValueError(f"a blob is given the shape {shape}; every size must be at least 0")
        self._shape = shape

    def bind(self, data: Array) -> None:
        """Show another's numbers as `data`, in their shape; contiguous, and read-only if they are."""
        self._shape = data.shape
        self.as_type(data.dtype)
        self._memory["data"] = data.reshape(-1)

    def as_type(self, dtype: np.dtype[Any]) -> None:
        """Change the precision, with all that was written."""
        if dtype != self._dtype:
            self._dtype = dtype
            self._memory = {name: memory.astype(dtype) for name, memory in self._memory.items()}

    def _view(self, name: str) -> Array:
        memory, count = self._memory.get(name), self.count
        if memory is None or memory.size < count:
            memory = self._memory[name] = np.zeros(count, self._dtype)
        return memory[:count].reshape(self._shape)

    def _legacy(self, axis: int) -> int:
        # blob.hpp, LegacyShape: what stood here when every blob had four axes.
        if len(self._shape) > _LEGACY_AXES:
            raise ValueError(
                f"num, channels, height and width are of blobs of at most four axes; this one has shape "
                f"{self._shape}: use shape"
            )
        return self._shape[axis] if axis < len(self._shape) else 1


class Blobs(list[Blob]):
    """The blobs that a layer learns."""

    def add_blob(self, *shape: SupportsIndex) -> None:
        """Add a blob of zeros."""
        blob = Blob()
        blob.reshape(*shape)
        self.append(blob)
