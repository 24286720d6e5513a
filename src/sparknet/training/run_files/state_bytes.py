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
    "fill_weights",
    "load_optimizer",
    "load_weights",
    "optimizer_file",
    "weights_file",
]


_LINE_END = ord("\n")
_OTHERS = "-"
"""Stands where others have a parameter."""
_KIND = "kind"
"""Whose state it is, beside the parameters."""


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
    fill_weights(module, load_tensors(data))


def fill_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy a whole state_dict into a module.

    Raises:
        CheckpointError: names or shapes are not this module's.
    """
    try:
        module.load_state_dict(tensors, strict=True)
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
    labels = _labels(optimizer)
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {f"{_OTHERS}.{key}": value for key, value in (others or {}).items()}
    numbers[_KIND] = type(optimizer).__name__
    for index, entries in state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{labels[index]}.{key}"] = value
            else:
                numbers[f"{labels[index]}.{key}"] = value
    # A line of JSON first, since safetensors keeps text alone beside its tensors; dumps puts no line end into it.
    return TensorFile(tensors, before=_line(numbers))


def dump_optimizer(optimizer: torch.optim.Optimizer, others: Mapping[str, float] | None = None) -> memoryview:
    """`optimizer_file` at once."""
    return optimizer_file(optimizer, others).whole()


def _labels(optimizer: torch.optim.Optimizer) -> list[str]:
    """What each parameter is called: by its group's `names`, since other groups are another order, or a number."""
    groups = optimizer.param_groups
    if all("names" in group for group in groups):
        return [name for group in groups for name in group["names"]]
    return [str(number) for number in range(sum(len(group["params"]) for group in groups))]


def _line(numbers: Mapping[str, Any]) -> bytes:
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
    try:
        entries = {**json.loads(numbers), **load_tensors(tensors)}
        kind = entries.pop(_KIND)
        others = {key: float(entries.pop(f"{_OTHERS}.{key}")) for key in _keys_of(_OTHERS, entries)}
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{len(data)} bytes of an optimiser's state are damaged: {error}") from error
    own = type(optimizer).__name__
    if kind != own:
        raise CheckpointError(
            f"the saved state is that of {kind}, and the run has {own}; resume with the optimiser that it had, or "
            "start a new run from its weights: set net.weights"
        )
    state = _numbered(optimizer, entries)
    # The groups stay its own: rates and decay are those of the configuration, which may have changed since.
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    _as_it_was(optimizer, state)
    return others


def _keys_of(label: str, entries: Mapping[str, object]) -> list[str]:
    return [name.rpartition(".")[2] for name in entries if name.rpartition(".")[0] == label]


def _numbered(optimizer: torch.optim.Optimizer, entries: Mapping[str, object]) -> dict[int, dict[str, object]]:
    """State by the numbers of this optimiser's parameters.

    Raises:
        CheckpointError: none of it is theirs.
    """
    numbers = {label: number for number, label in enumerate(_labels(optimizer))}
    state: dict[int, dict[str, object]] = {}
    for name, value in entries.items():
        label, _, key = name.rpartition(".")
        # What a configuration has frozen since has no state any more.
        if label in numbers:
            state.setdefault(numbers[label], {})[key] = value
    if entries and not state:
        raise CheckpointError(
            f"the saved state is that of {next(iter(entries))} and others, and none is of a parameter that is "
            "optimised now; resume with the net that the run was trained with"
        )
    return state


def _as_it_was(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, object]]) -> None:
    """Undo what loading makes of tensors: each has its own dtype, and the memory order of its parameter."""
    parameters = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    for index, entries in state.items():
        parameter = parameters[index]
        for key, saved in entries.items():
            if not isinstance(saved, Tensor):
                continue
            loaded: Tensor = optimizer.state[parameter][key]
            if loaded.dtype != saved.dtype:
                # A float32 average beside bfloat16 weights would go on rounded.
                loaded = saved.to(loaded.device)
            if loaded.shape == parameter.shape and loaded.stride() != parameter.stride():
                # Bytes are in the order of the axes; in another than the weights', each step would be slower.
                loaded = torch.empty_like(parameter, dtype=loaded.dtype).copy_(loaded)
            optimizer.state[parameter][key] = loaded
