"""A replica's state as bytes: safetensors and JSON, nothing that is unpickled."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparknet.errors import CheckpointError
from sparknet.training.run_files.tensor_bytes import TensorFile, load_tensors
from sparknet.training.sync.pieces import Bytes

__all__ = [
    "dump_optimizer",
    "dump_weights",
    "load_optimizer",
    "load_weights",
    "optimizer_file",
    "weights_file",
]


_LINE_END = ord("\n")
_OTHERS = "-"
"""Stands where others have a parameter's number."""


def weights_file(module: nn.Module) -> TensorFile:
    """The module's state_dict as a safetensors file; the weights must stay until it is written."""
    return TensorFile(module.state_dict())


def dump_weights(module: nn.Module) -> memoryview:
    """`weights_file` at once: a second copy of the weights."""
    return weights_file(module).whole()


def load_weights(module: nn.Module, data: Bytes) -> None:
    """Load what `dump_weights` made, in place: tensors keep their storage.

    Raises:
        CheckpointError: the bytes are damaged, or names or shapes are not this module's.
    """
    try:
        module.load_state_dict(load_tensors(data), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the saved weights do not fit the net: {reason}; use the net that the run was trained with"
        ) from error


def optimizer_file(optimizer: torch.optim.Optimizer, others: Mapping[str, float] | None = None) -> TensorFile:
    """Any torch optimiser's state: tensors as `<parameter>.<key>`, plain numbers and None in a line of JSON.

    The tensors must stay as they are until it is written.

    Args:
        optimizer: whose state.
        others: numbers that are kept with it.
    """
    state: Mapping[int, Mapping[str, Any]] = optimizer.state_dict()["state"]
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float | None] = {f"{_OTHERS}.{key}": value for key, value in (others or {}).items()}
    for index, entries in state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                numbers[f"{index}.{key}"] = value
    # A line of JSON first, since safetensors keeps text alone beside its tensors; dumps puts no line end into it.
    return TensorFile(tensors, before=_line(numbers))


def dump_optimizer(optimizer: torch.optim.Optimizer, others: Mapping[str, float] | None = None) -> memoryview:
    """`optimizer_file` at once."""
    return optimizer_file(optimizer, others).whole()


def _line(numbers: Mapping[str, float | None]) -> bytes:
    """A line of JSON of such a length that what follows lies aligned."""
    text = json.dumps(numbers).encode()
    return text + b" " * (-(len(text) + 1) % 8) + b"\n"


def load_optimizer(optimizer: torch.optim.Optimizer, data: Bytes) -> dict[str, float]:
    """Load what `dump_optimizer` made into an optimiser of the same kind over the same parameters.

    Returns:
        The other numbers that were kept with it.

    Raises:
        CheckpointError: the bytes are damaged.
    """
    view = memoryview(data)
    # The numbers are few: the line ends soon, and the tensors behind it need not be searched.
    end = next((at for at in range(len(view)) if view[at] == _LINE_END), len(view))
    numbers, tensors = bytes(view[:end]), view[end + 1 :]
    state: dict[int, dict[str, object]] = {}
    others: dict[str, float] = {}
    try:
        for name, value in {**json.loads(numbers), **load_tensors(tensors)}.items():
            index, _, key = name.partition(".")
            if index == _OTHERS:
                others[key] = float(value)
                continue
            state.setdefault(int(index), {})[key] = value
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{len(data)} bytes of an optimiser's state are damaged: {error}") from error
    # The groups stay its own: rates and decay are those of the configuration, which may have changed since.
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return others
