"""The optimisers of `torch.optim` by name, with the arguments of a configuration."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparknet.config import Solver
from sparknet.errors import ConfigError
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.paired_optimizer import PairedOptimizer
from sparknet.training.objectives.parameter_groups import grouped_parameters

__all__ = ["check_optimizer", "torch_optimizer"]

_REFUSED = {
    "LBFGS": "it looks at the loss several times a step, each time on the same batch",
    "SparseAdam": "it takes sparse gradients alone, and here they are dense",
}
_REFUSED_ARGUMENTS = {
    "differentiable": "nothing differentiates through a step here",
    "capturable": "steps are not captured as CUDA graphs here",
}
_OWN_KEYS = ("lr", "momentum", "weight_decay")
"""What has a key of its own in section `solver`."""
_SGD_MOMENTUM = 0.9


def check_optimizer(solver: Solver) -> None:
    """Find what is wrong with a solver's class and arguments, without a net.

    Raises:
        ConfigError: there is no such optimiser, or it does not take its arguments.
    """
    _choose(solver)


def torch_optimizer(solver: Solver, objective: Objective) -> Callable[[], torch.optim.Optimizer]:
    """What makes the optimiser that a solver names, over an objective's parameters, each time anew.

    Muon steps matrices alone: embeddings, and parameters that are no matrices, are AdamW's.

    Raises:
        ConfigError: there is no such optimiser, or it does not take its arguments or these parameters.
    """
    chosen = _choose(solver)
    if chosen.kind is torch.optim.Muon:
        return _muon(chosen, solver, objective)
    groups = grouped_parameters(solver, objective, decay=chosen.decay)
    _check_any(groups)
    return functools.partial(_made, chosen.kind, groups, lr=solver.learning_rate, **chosen.arguments)


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Chosen:
    """A class of `torch.optim`, and how it is made."""

    kind: type[Any]
    arguments: Mapping[str, Any]
    """Without its rate and weight decay, which are told to each group."""
    decay: float | None
    """Weight decay of what nothing else is said of; None: it has none."""


def _choose(solver: Solver) -> _Chosen:
    kind = _find(solver.optimizer)
    signature = inspect.signature(kind.__init__).parameters
    decay = signature["weight_decay"].default if "weight_decay" in signature else None
    if decay is None:
        _refuse_decay(solver)
    elif solver.weight_decay is not None:
        decay = solver.weight_decay
    arguments = _arguments(kind, signature, solver)
    # Not without need: with its first optimiser torch imports its compiler, for most of a second.
    if solver.arguments:
        _try(kind, arguments, solver)
    return _Chosen(kind=kind, arguments=arguments, decay=decay)


def _find(name: str) -> type[Any]:
    if name in _REFUSED:
        raise ConfigError(f"solver.optimizer is {name!r}; {_REFUSED[name]}: take another one")
    known = {
        one: value
        for one, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
        and one not in _REFUSED
    }
    if name not in known:
        alike = [one for one in known if one.lower() == name.lower()]
        close = alike or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else "name another"
        raise ConfigError(f"solver.optimizer is {name!r}; it must be one of {', '.join(sorted(known))}: {hint}")
    return known[name]


def _refuse_decay(solver: Solver) -> None:
    """See that nothing is said of a weight decay, which torch would keep in a group and never look at."""
    told: dict[str, object] = {"solver.weight_decay": solver.weight_decay}
    told |= {f"solver.groups {group.pattern!r} weight_decay": group.weight_decay for group in solver.groups}
    told["solver.decay_norms_and_biases"] = None if solver.decay_norms_and_biases else False
    for key, value in told.items():
        if value is not None:
            raise ConfigError(f"{key} is {value!r}, and {solver.optimizer} takes no weight_decay: leave it out")


def _arguments(kind: type[Any], signature: Mapping[str, inspect.Parameter], solver: Solver) -> dict[str, Any]:
    """Keyword arguments of the class, held against its signature."""
    own = {"self", "params", *_OWN_KEYS, *_REFUSED_ARGUMENTS}
    known = [name for name in signature if name not in own]
    given: dict[str, Any] = {}
    for key, value in solver.arguments.items():
        if key in _REFUSED_ARGUMENTS:
            raise ConfigError(f"solver.arguments.{key} is {value!r}; {_REFUSED_ARGUMENTS[key]}: leave it out")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
            raise ConfigError(f"solver.arguments.{key} is {value!r}, and {solver.optimizer} takes no {key}: {hint}")
        # TOML has lists, and torch takes tuples.
        given[key] = tuple(value) if isinstance(value, list) else value
    if solver.momentum is not None:
        if "momentum" not in signature:
            raise ConfigError(
                f"solver.momentum is {solver.momentum!r}, and {solver.optimizer} takes no momentum: leave it out, "
                "or set what it has in solver.arguments"
            )
        given["momentum"] = solver.momentum
    elif kind is torch.optim.SGD:
        given["momentum"] = _SGD_MOMENTUM
    if kind is torch.optim.Muon:
        # Its steps are then of the size of AdamW's, so that one rate is right for both (arXiv 2502.16982, section
        # 2.2).
        given.setdefault("adjust_lr_fn", "match_rms_adamw")
    return given


def _try(kind: type[Any], arguments: Mapping[str, Any], solver: Solver) -> None:
    """Make one of a matrix, and step it: many a value that is wrong is only found there."""
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.zeros(2, 2)
    try:
        kind([weight], lr=solver.learning_rate, **arguments).step()
    except Exception as error:  # whatever torch makes of a value that it does not take
        listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ConfigError(
            f"solver.optimizer is {solver.optimizer!r}, which does not take {listed}: {error}: correct "
            "solver.arguments"
        ) from error


def _muon(chosen: _Chosen, solver: Solver, objective: Objective) -> Callable[[], torch.optim.Optimizer]:
    """Muon for hidden matrices, which is all it is for, and AdamW for all else."""
    # Of matrices too: rows of an embedding are looked up, and not multiplied (torch.optim.Muon's own advice).
    looked_up = {
        id(part.weight) for part in objective.module.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag)
    }

    def is_matrix(tensor: Tensor) -> bool:
        return tensor.dim() == 2 and id(tensor) not in looked_up

    # Each by its own default, where the solver says nothing of weight decay.
    adamw = _choose(Solver(optimizer="AdamW", weight_decay=solver.weight_decay))
    matrices = grouped_parameters(solver, objective, decay=chosen.decay, only=is_matrix)
    others = grouped_parameters(solver, objective, decay=adamw.decay, only=lambda tensor: not is_matrix(tensor))
    _check_any([*matrices, *others])
    if not matrices:
        raise ConfigError(
            "solver.optimizer is 'Muon', which steps matrices, and no parameter is one: take another optimiser"
        )
    rate = solver.learning_rate
    first = functools.partial(_made, torch.optim.Muon, matrices, lr=rate, **chosen.arguments)
    if not others:
        return first
    second = functools.partial(_made, torch.optim.AdamW, others, lr=rate)
    return lambda: PairedOptimizer(first(), second())


def _made(kind: type[Any], groups: list[dict[str, Any]], **arguments: Any) -> torch.optim.Optimizer:
    # Copies, since an optimiser writes into the groups that it is given.
    return kind([dict(group) for group in groups], **arguments)


def _check_any(groups: list[dict[str, Any]]) -> None:
    if not groups:
        raise ConfigError(
            "no parameter is left to be trained: net.freeze, rate factors or Caffe's multipliers of 0 hold all of "
            "them; let go of some"
        )
