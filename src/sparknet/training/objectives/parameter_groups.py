"""Which parameters are optimised how: multipliers of the net, patterns of the configuration, and what decays."""

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sparknet.config import ParameterGroup, Solver
from sparknet.errors import ConfigError
from sparknet.training.objectives.objective import Objective

__all__ = ["grouped_parameters"]

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Those whose parameters may have several axes; of others, as BatchNorm, they have one."""


def grouped_parameters(
    solver: Solver,
    objective: Objective,
    *,
    decay: float | None,
    only: Callable[[Tensor], bool] = lambda tensor: True,
) -> list[dict[str, Any]]:
    """Groups as torch's optimisers take them: `params`, `names`, `lr_mult`, and `weight_decay` where there is one.

    Parameters that do not move, since a multiplier of theirs is 0, are in none.

    Args:
        solver: patterns, and whether norms and biases decay.
        objective: whose parameters.
        decay: weight decay of parameters that nothing else is said of; None: the optimiser has no such thing.
        only: which parameters are taken.

    Raises:
        ConfigError: a pattern of `solver.groups` fits no parameter, or none that the patterns before it have left.
    """
    names = _names(objective.module)
    _check_patterns(solver.groups, names)
    spared = set[int]() if solver.decay_norms_and_biases else _spared(objective.module, names)
    groups: dict[tuple[float, float | None], dict[str, Tensor]] = {}
    for learnable in objective.learnable:
        tensor = learnable.tensor
        # Caffe's learnable blobs have statistics among them, which are buffers.
        if not tensor.requires_grad or not only(tensor):
            continue
        own_names = names[id(tensor)]
        own = _group_of(own_names, solver.groups)
        factor = learnable.lr_mult * (own.rate_factor if own else 1.0)
        # A tensor that does not move needs no state either.
        if not factor:
            continue
        key = (factor, None)
        if decay is not None:
            told = own.weight_decay if own and own.weight_decay is not None else decay
            # Per group, since torch has no decay_mult.
            key = (factor, 0.0 if id(tensor) in spared else told * learnable.decay_mult)
        groups.setdefault(key, {})[own_names[0]] = tensor
    return [
        {
            "params": list(named.values()),
            # Not `param_names`, which torch holds against what is loaded.
            "names": list(named),
            "lr_mult": factor,
            **({} if own_decay is None else {"weight_decay": own_decay}),
        }
        for (factor, own_decay), named in groups.items()
    ]


def _names(module: nn.Module) -> dict[int, tuple[str, ...]]:
    """All names of each parameter: one that two parts share has several."""
    names: dict[int, tuple[str, ...]] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        names[id(tensor)] = (*names.get(id(tensor), ()), name)
    return names


def _group_of(names: Sequence[str], groups: Sequence[ParameterGroup]) -> ParameterGroup | None:
    return next((group for group in groups if _fits(names, group)), None)


def _fits(names: Sequence[str], group: ParameterGroup) -> bool:
    return any(fnmatch.fnmatchcase(name, group.pattern) for name in names)


def _check_patterns(groups: Sequence[ParameterGroup], names: Mapping[int, tuple[str, ...]]) -> None:
    for at, group in enumerate(groups):
        fitting = [own for own in names.values() if _fits(own, group)]
        if not fitting:
            known = [name for own in names.values() for name in own]
            close = difflib.get_close_matches(group.pattern, known, n=1, cutoff=0.3)
            hint = f"nearest is {close[0]}" if close else f"they are {', '.join(known[:4])} and so on"
            raise ConfigError(
                f"solver.groups has the pattern {group.pattern!r}, which fits no parameter; {hint}: correct it"
            )
        # Each parameter takes the first group that fits: a later one may be left without any.
        if all(_group_of(own, groups[:at]) for own in fitting):
            first = _group_of(fitting[0], groups[:at])
            assert first is not None
            raise ConfigError(
                f"solver.groups has the pattern {group.pattern!r} behind {first.pattern!r}, and those before it "
                "take all that it fits: put it first"
            )


def _spared(module: nn.Module, names: Mapping[int, tuple[str, ...]]) -> set[int]:
    """Parameters without weight decay: of normalisation, biases, and all of one axis."""
    norms = {id(tensor) for part in module.modules() if isinstance(part, _NORMS) for tensor in part.parameters()}
    biases = {number for number, own in names.items() if any(name.split(".")[-1] == "bias" for name in own)}
    return norms | biases | {id(tensor) for tensor in module.parameters() if tensor.dim() <= 1}
