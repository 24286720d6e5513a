"""Code of the user's that a program gives as an object, and a module without its weights.

A configuration is text: it has a name for each net and loss. Where a notebook defines them there is nothing that
such a name could import on another machine, so the objects travel beside the configuration, from the user's own
program to its own workers and nowhere else: never into a file, and never from one.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Code", "NetInstance", "reference_to"]

Code = Mapping[str, Callable[..., Any]]
"""By the name that the configuration has for it what a program gave."""


class NetInstance:
    """A module that a program has made, as a callable that makes it again; its weights are not part of it.

    They travel as every other state of a run does: a task that carries this is small whatever the module's size.

    Args:
        module: stays as it is. What is neither a parameter nor a buffer of its state_dict is copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self._template = _with_tensors(module, lambda tensor: torch.empty_like(tensor, device="meta"))

    def __call__(self) -> nn.Module:
        """The module on the CPU, its parameters and buffers all zero."""
        return _with_tensors(self._template, lambda tensor: torch.zeros_like(tensor, device="cpu"))


def _with_tensors(module: nn.Module, replaced: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy with other tensors for those of its state_dict; such as are one tensor stay one."""
    memo: dict[int, object] = {}
    for tensor in module.state_dict(keep_vars=True).values():
        if not isinstance(tensor, Tensor):  # what `get_extra_state` gave
            continue
        other = replaced(tensor.detach())
        if isinstance(tensor, nn.Parameter):
            other = nn.Parameter(other, requires_grad=tensor.requires_grad)
        # What `deepcopy` finds under an object's number it takes for its copy.
        memo[id(tensor)] = other
    return copy.deepcopy(module, memo)


def reference_to(given: object) -> str:
    """What a configuration calls an object: `module:name`, of an instance its class."""
    named: Any = given if hasattr(given, "__qualname__") else type(given)
    return f"{named.__module__}:{named.__qualname__}"
