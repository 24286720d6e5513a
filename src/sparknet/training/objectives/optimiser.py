"""The inner optimiser of a replica: what steps the weights, at which rate, over how many batches."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sparknet.caffe.solver.policies import policy_rate, settled_step
from sparknet.caffe.solver.updates import CaffeOptimizer, parameter_groups
from sparknet.config import Solver
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.recipe import Recipe

__all__ = ["InnerSolver", "build_inner_solver", "learning_rate"]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class InnerSolver:
    """How a replica's weights follow from its gradients."""

    optimizer: torch.optim.Optimizer
    rate: Callable[[float], float]
    """The learning rate at an iteration, counted from the beginning of the run; not whole where paces differ."""
    batches_per_step: int = 1
    """Batches whose gradients are summed up before a step, and whose losses are averaged (Caffe's iter_size)."""

    def set_rate(self, rate: float) -> None:
        """Give all parameters this rate, times their own multiplier where the optimiser leaves that to us."""
        for group in self.optimizer.param_groups:
            # Caffe's optimiser multiplies by lr_mult itself; torch's SGD keeps the key and does not look at it.
            own = 1.0 if isinstance(self.optimizer, CaffeOptimizer) else group.get("lr_mult", 1.0)
            group["lr"] = rate * own


def build_inner_solver(recipe: Recipe, objective: Objective, *, total_iterations: int) -> InnerSolver:
    """Caffe's solver where the recipe has the settings of one, else torch's SGD."""
    solver, settings = recipe.solver, recipe.settings
    if settings is None:
        return InnerSolver(
            optimizer=_torch_sgd(solver, objective),
            rate=lambda iteration: learning_rate(solver, iteration, total_iterations),
        )
    policy = settings.policy

    def rate(iteration: float) -> float:
        # The last round may go past max_iter, since rounds are whole; the rate stays what it was there.
        at = int(iteration) if settings.max_iter is None else min(int(iteration), settings.max_iter)
        # No schedule with a state: whoever resumes, joins or falls back has the rate of the iteration at once.
        return policy_rate(policy, at, settled_step(policy, at))

    return InnerSolver(
        optimizer=CaffeOptimizer(parameter_groups(objective.learnable), lr=policy.base_lr, rule=settings.rule),
        rate=rate,
        batches_per_step=recipe.batches_per_step,
    )


def learning_rate(solver: Solver, iteration: float, total: int) -> float:
    """The rate at an iteration.

    Policies: `fixed` b; `step` b γ^⌊iteration / step_size⌋ (Caffe, sgd_solver.cpp); `cosine`
    b (1 + cos(π iteration / total)) / 2 (SGDR, arXiv 1608.03983, equation 5, without restarts).

    Args:
        solver: base rate b, policy and its constants.
        iteration: local steps since the run began, as the run counts them: round times local_steps.
        total: iterations of the whole run.
    """
    match solver.policy:
        case "fixed":
            return solver.learning_rate
        case "step":
            return solver.learning_rate * solver.gamma ** math.floor(iteration / (solver.step_size or 1))
        case "cosine":
            # Past the end the cosine would rise again.
            return solver.learning_rate * (1 + math.cos(math.pi * min(1.0, iteration / total))) / 2


def _torch_sgd(solver: Solver, objective: Objective) -> torch.optim.SGD:
    groups = [
        {
            "params": [tensor for tensor in group["params"] if tensor.requires_grad],
            "lr_mult": group["lr_mult"],
            # Per group, since torch has no decay_mult.
            "weight_decay": (solver.weight_decay or 0.0) * group["decay_mult"],
        }
        for group in parameter_groups(objective.learnable)
        # A tensor that does not move needs no momentum either.
        if group["lr_mult"]
    ]
    return torch.optim.SGD(
        groups, lr=solver.learning_rate, momentum=0.9 if solver.momentum is None else solver.momentum
    )
