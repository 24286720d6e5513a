"""Batches, one after the other."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparknet.errors import DataError

__all__ = ["Feed", "Inputs", "as_tensors"]

Inputs = Mapping[str, Tensor | NDArray[Any]]
"""A batch: the net's input blobs by name. Labels may be whole numbers of any type."""


class Feed:
    """Batches without an end, as Caffe's data layers give them: what can be read again starts over.

    Args:
        batches: a collection, or an iterator, which cannot start over.
        purpose: "training", say; for errors.
    """

    def __init__(self, batches: Iterable[Inputs], purpose: str) -> None:
        self._source = batches
        self._iterator: Iterator[Inputs] = iter(batches)
        self._purpose = purpose
        self._ahead: list[Inputs] = []

    def next(self) -> Inputs:
        """The next batch.

        Raises:
            DataError: there is none, and the batches cannot be read again.
        """
        if self._ahead:
            return self._ahead.pop()
        batch = next(self._iterator, None)
        if batch is None and self._iterator is not self._source:
            self._iterator = iter(self._source)
            batch = next(self._iterator, None)
        if batch is None:
            raise DataError(
                f"the {self._purpose} batches have come to an end; give more of them, or a collection, which can "
                "be read again"
            )
        return batch

    def peek(self) -> Inputs:
        """The batch that `next` will give."""
        if not self._ahead:
            self._ahead.append(self.next())
        return self._ahead[-1]


def as_tensors(batch: Inputs) -> dict[str, Tensor]:
    """The batch with tensors, which share the arrays' memory where that may be written."""
    return {name: value if isinstance(value, Tensor) else _tensor(value) for name, value in batch.items()}


def _tensor(value: NDArray[Any]) -> Tensor:
    array = np.asarray(value)
    # torch has no read-only tensors and warns about such arrays
    return torch.from_numpy(array if array.flags.writeable else array.copy())
