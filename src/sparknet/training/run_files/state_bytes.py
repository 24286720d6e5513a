"""A replica's state as bytes: safetensors and JSON, nothing that is unpickled."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from sparknet.errors import CheckpointError

__all__ = [
    "dump_optimizer",
    "dump_weights",
    "load_optimizer",
    "load_weights",
]


def dump_weights(module: nn.Module) -> bytes:
    """The module's state_dict as a safetensors file."""
    # Clones: the module's tensors may be views of one flat buffer, which safetensors refuses to guess about.
    # It keeps the interpreter's lock, for 1 GB over 2 s: no thread runs in that time, the heartbeat's neither.
    return save({name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()})


def load_weights(module: nn.Module, data: bytes) -> None:
    """Load what `dump_weights` made, in place: tensors keep their storage.

    Raises:
        CheckpointError: the bytes are damaged, or names or shapes are not this module's.
    """
    try:
        module.load_state_dict(load(data), strict=True)
    except SafetensorError as error:
        raise CheckpointError(f"{len(data)} bytes of saved weights are damaged: {error}") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the saved weights do not fit the net: {reason}; use the net that the run was trained with"
        ) from error


def dump_optimizer(optimizer: torch.optim.Optimizer) -> bytes:
    """Any torch optimiser's state: tensors as `<parameter>.<key>`, plain numbers in the metadata."""
    state: Mapping[int, Mapping[str, Any]] = optimizer.state_dict()["state"]
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for index, entries in state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value.detach().clone().contiguous()
            elif value is not None:
                numbers[f"{index}.{key}"] = value
    # A line of JSON first, since safetensors keeps text alone beside its tensors; dumps puts no line end into it.
    return json.dumps(numbers).encode() + b"\n" + save(tensors)


def load_optimizer(optimizer: torch.optim.Optimizer, data: bytes) -> None:
    """Load what `dump_optimizer` made into an optimiser of the same kind over the same parameters.

    Raises:
        CheckpointError: the bytes are damaged.
    """
    numbers, _, tensors = data.partition(b"\n")
    state: dict[int, dict[str, object]] = {}
    try:
        for name, value in {**json.loads(numbers), **load(tensors)}.items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
    except (ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{len(data)} bytes of an optimiser's state are damaged: {error}") from error
    # The groups stay its own: rates and decay are those of the configuration, which may have changed since.
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
