"""Which parameters are optimised how: multipliers of the net, patterns of the configuration, and what decays."""

import difflib
import fnmatch
from typing import Any

from torch import Tensor, nn

from sparknet.config import ParameterGroup, Solver
from sparknet.errors import ConfigError
from sparknet.training.objectives.objective import Objective

__all__ = ["grouped_parameters"]

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Those whose parameters may have several axes; of others, as BatchNorm, they have one."""


def grouped_parameters(solver: Solver, objective: Objective) -> list[dict[str, Any]]:
    """Groups as torch's optimisers take them: `params`, `lr_mult`, and `weight_decay` where it is not the default.

    Raises:
        ConfigError: a pattern of `solver.groups` fits no parameter.
    """
    names = {id(tensor): name for name, tensor in objective.module.named_parameters()}
    _check_patterns(solver.groups, list(names.values()))
    spared = _spared(objective.module) if not solver.decay_norms_and_biases else set[int]()
    groups: dict[tuple[float, float | None], list[Tensor]] = {}
    for learnable in objective.learnable:
        tensor = learnable.tensor
        # A tensor that does not move needs no state either.
        if not tensor.requires_grad or not learnable.lr_mult:
            continue
        own = _group_of(names.get(id(tensor), ""), solver.groups)
        factor = learnable.lr_mult * (own.rate_factor if own else 1.0)
        decay = own.weight_decay if own and own.weight_decay is not None else solver.weight_decay
        if id(tensor) in spared:
            decay = 0.0
        elif decay is not None:
            # Per group, since torch has no decay_mult.
            decay *= learnable.decay_mult
        if factor:
            groups.setdefault((factor, decay), []).append(tensor)
    return [
        {"params": tensors, "lr_mult": factor, **({} if decay is None else {"weight_decay": decay})}
        for (factor, decay), tensors in groups.items()
    ]


def _group_of(name: str, groups: tuple[ParameterGroup, ...]) -> ParameterGroup | None:
    return next((group for group in groups if fnmatch.fnmatchcase(name, group.pattern)), None)


def _check_patterns(groups: tuple[ParameterGroup, ...], names: list[str]) -> None:
    for group in groups:
        if not fnmatch.filter(names, group.pattern):
            close = difflib.get_close_matches(group.pattern, names, n=1, cutoff=0.3)
            hint = f"nearest is {close[0]}" if close else f"they are {', '.join(names[:4])} and so on"
            raise ConfigError(
                f"solver.groups has the pattern {group.pattern!r}, which fits no parameter; {hint}: correct it"
            )


def _spared(module: nn.Module) -> set[int]:
    """Parameters without weight decay: of normalisation, and all of one axis, as biases are."""
    norms = {id(tensor) for part in module.modules() if isinstance(part, _NORMS) for tensor in part.parameters()}
    return norms | {id(tensor) for tensor in module.parameters() if tensor.dim() <= 1}
