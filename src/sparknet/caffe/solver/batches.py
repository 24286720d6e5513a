"""What a net is given."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Inputs", "as_tensors"]

Inputs = Mapping[str, Tensor | NDArray[Any]]
"""A batch: the net's input blobs by name. Labels may be whole numbers of any type."""


def as_tensors(batch: Inputs) -> dict[str, Tensor]:
    """The batch with tensors, which share the arrays' memory where that may be written."""
    return {name: value if isinstance(value, Tensor) else _tensor(value) for name, value in batch.items()}


def _tensor(value: NDArray[Any]) -> Tensor:
    array = np.asarray(value)
    # torch has no read-only tensors and warns about such arrays
    return torch.from_numpy(array if array.flags.writeable else array.copy())
