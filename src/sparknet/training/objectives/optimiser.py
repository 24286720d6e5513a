"""The inner optimiser of a replica: what steps the weights, at which rate, over how many batches."""

import copy
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sparknet.caffe.solver.policies import policy_rate, settled_step
from sparknet.caffe.solver.updates import CaffeOptimizer, parameter_groups
from sparknet.config import Solver
from sparknet.errors import ConfigError
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.paired_optimizer import PairedOptimizer
from sparknet.training.objectives.parameter_groups import grouped_parameters
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.objectives.schedules import learning_rate

__all__ = ["InnerSolver", "build_inner_solver"]

_REFUSED = {
    "LBFGS": "it looks at the loss several times a step, each time on the same batch",
    "SparseAdam": "it takes sparse gradients alone, and here they are dense",
}
_SGD_MOMENTUM = 0.9


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class InnerSolver:
    """How a replica's weights follow from its gradients."""

    optimizer: torch.optim.Optimizer
    rate: Callable[[float], float]
    """The learning rate at an iteration, counted from the beginning of the run; not whole where paces differ."""
    batches_per_step: int = 1
    """Batches whose gradients go into a step, and whose losses are averaged."""
    batch_share: float = 1.0
    """What a batch's loss is multiplied by: with Caffe's iter_size nothing, since its optimiser divides itself."""
    clip_norm: float | None = None
    """Gradients of a greater norm over all parameters are scaled down to it."""
    _made: Mapping[Any, Any] = field(default_factory=dict[Any, Any])
    """State that the optimiser had when it was made: most make theirs at the first step."""

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, rate: Callable[[float], float], **settings: Any) -> "InnerSolver":
        """Of an optimiser that has taken no step yet."""
        made = copy.deepcopy(optimizer.state_dict()["state"])
        return cls(optimizer=optimizer, rate=rate, _made=made, **settings)

    def set_rate(self, rate: float) -> None:
        """Give all parameters this rate, times their own multiplier where the optimiser leaves that to us."""
        for group in self.optimizer.param_groups:
            # Caffe's optimiser multiplies by lr_mult itself; torch's keep the key and do not look at it.
            own = 1.0 if isinstance(self.optimizer, CaffeOptimizer) else group.get("lr_mult", 1.0)
            # Where the optimiser was told to keep its rate in a tensor, it must stay the same tensor.
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate * own)
            else:
                group["lr"] = rate * own

    def forget(self) -> None:
        """Bring the optimiser back to where it had taken no step."""
        # Not an empty state: some optimisers make theirs when they are made, and fail without.
        self.optimizer.state.clear()
        if self._made:
            state = {**self.optimizer.state_dict(), "state": copy.deepcopy(self._made)}
            self.optimizer.load_state_dict(state)


def build_inner_solver(recipe: Recipe, objective: Objective, *, total_iterations: int) -> InnerSolver:
    """Caffe's solver where the recipe has the settings of one, else one of torch's.

    Raises:
        ConfigError: there is no such optimiser, or it does not take its arguments or these parameters.
    """
    solver, settings = recipe.solver, recipe.settings
    if settings is None:
        return InnerSolver.of(
            _torch_optimizer(solver, objective),
            lambda iteration: learning_rate(solver, iteration, total_iterations),
            batches_per_step=solver.accumulate,
            batch_share=1 / solver.accumulate,
            clip_norm=solver.clip_norm,
        )
    policy = settings.policy

    def rate(iteration: float) -> float:
        # The last round may go past max_iter, since rounds are whole; the rate stays what it was there.
        at = int(iteration) if settings.max_iter is None else min(int(iteration), settings.max_iter)
        # No schedule with a state: whoever resumes, joins or falls back has the rate of the iteration at once.
        return policy_rate(policy, at, settled_step(policy, at))

    optimizer = CaffeOptimizer(parameter_groups(objective.learnable), lr=policy.base_lr, rule=settings.rule)
    return InnerSolver.of(optimizer, rate, batches_per_step=recipe.batches_per_step)


def _torch_optimizer(solver: Solver, objective: Objective) -> torch.optim.Optimizer:
    kind = _find(solver.optimizer)
    arguments = _arguments(kind, solver)
    groups = grouped_parameters(solver, objective)
    try:
        if kind is torch.optim.Muon:
            return _muon(groups, solver, arguments)
        return kind(groups, lr=solver.learning_rate, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"solver.optimizer is {solver.optimizer!r}, which does not take {_listed(arguments)}: {error}: correct "
            "solver.arguments"
        ) from error


def _find(name: str) -> type[Any]:
    known = [
        one
        for one, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    ]
    if name in _REFUSED:
        raise ConfigError(f"solver.optimizer is {name!r}; {_REFUSED[name]}: take another one")
    if name not in known:
        alike = [one for one in known if one.lower() == name.lower()]
        close = alike or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else "name another"
        offered = ", ".join(sorted(set(known) - set(_REFUSED)))
        raise ConfigError(f"solver.optimizer is {name!r}; it must be one of {offered}: {hint}")
    return getattr(torch.optim, name)


def _arguments(kind: type[Any], solver: Solver) -> dict[str, Any]:
    """Keyword arguments of the class, held against its signature."""
    known = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "params", "lr")]
    given: dict[str, Any] = {
        # TOML has lists, and torch takes tuples.
        key: tuple(value) if isinstance(value, list) else value
        for key, value in solver.arguments.items()
    }
    if solver.momentum is not None:
        given["momentum"] = solver.momentum
    elif kind is torch.optim.SGD:
        given["momentum"] = _SGD_MOMENTUM
    if solver.weight_decay is not None:
        given["weight_decay"] = solver.weight_decay
    for key in given:
        if key not in known:
            own = {"momentum": "solver.momentum", "weight_decay": "solver.weight_decay"}
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
            raise ConfigError(
                f"{own.get(key, f'solver.arguments.{key}')} is {given[key]!r}, and {solver.optimizer} takes no "
                f"{key}: {hint}"
            )
    return given


def _muon(groups: list[dict[str, Any]], solver: Solver, arguments: dict[str, Any]) -> torch.optim.Optimizer:
    """Muon for matrices, which is all it takes, and AdamW for all else."""
    matrices = [_only(group, matrices=True) for group in groups]
    others = [_only(group, matrices=False) for group in groups]
    matrices, others = ([group for group in side if group["params"]] for side in (matrices, others))
    if not matrices:
        raise ConfigError(
            "solver.optimizer is 'Muon', which steps matrices, and no parameter is one: take another optimiser"
        )
    # Its steps are then of the size of AdamW's, so that one rate is right for both (arXiv 2502.16982, section 2.2).
    arguments = {"adjust_lr_fn": "match_rms_adamw", **arguments}
    muon = torch.optim.Muon(matrices, lr=solver.learning_rate, **arguments)
    if not others:
        return muon
    decay = {"weight_decay": arguments["weight_decay"]} if "weight_decay" in arguments else {}
    return PairedOptimizer(muon, torch.optim.AdamW(others, lr=solver.learning_rate, **decay))


def _only(group: dict[str, Any], *, matrices: bool) -> dict[str, Any]:
    return {**group, "params": [tensor for tensor in group["params"] if (tensor.dim() == 2) == matrices]}


def _listed(given: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in given.items()) or "these parameters"
