"""The inner optimiser of a replica: what steps the weights, at which rate, over how many batches."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from sparknet.caffe.solver.policies import policy_rate, settled_step
from sparknet.caffe.solver.updates import CaffeOptimizer, parameter_groups
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.objectives.schedules import learning_rate
from sparknet.training.objectives.torch_optimizers import check_optimizer, torch_optimizer

__all__ = ["InnerSolver", "build_inner_solver", "check_solver"]


@dataclass(eq=False, kw_only=True, slots=True)
class InnerSolver:
    """How a replica's weights follow from its gradients."""

    make: Callable[[], torch.optim.Optimizer]
    """Makes an optimiser of these weights that has taken no step."""
    rate: Callable[[float], float]
    """The learning rate at an iteration, counted from the beginning of the run; not whole where paces differ."""
    batches_per_step: int = 1
    """Batches whose gradients go into a step, and whose losses are averaged."""
    batch_share: float = 1.0
    """What a batch's loss is multiplied by: with Caffe's iter_size nothing, since its optimiser divides itself."""
    clip_norm: float | None = None
    """Gradients of a greater norm over all parameters are scaled down to it."""
    optimizer: torch.optim.Optimizer = field(init=False)
    """Steps the weights; another one after `forget`."""

    def __post_init__(self) -> None:
        self.optimizer = self.make()

    def set_rate(self, rate: float) -> None:
        """Give all parameters this rate, times their own multiplier where the optimiser leaves that to us."""
        for group in self.optimizer.param_groups:
            # Caffe's optimiser multiplies by lr_mult itself; torch's keep the key and do not look at it.
            own = 1.0 if isinstance(self.optimizer, CaffeOptimizer) else group.get("lr_mult", 1.0)
            group["lr"] = rate * own

    def forget(self) -> None:
        """Bring the optimiser back to where it had taken no step."""
        # A new one, not an empty state: some make theirs when they are made, and fail without.
        self.optimizer = self.make()


def check_solver(recipe: Recipe, objective: Objective | None = None) -> None:
    """Find what is wrong with a solver before any worker builds it.

    Args:
        recipe: says which.
        objective: whose parameters it is for; None: class and arguments alone are looked at.

    Raises:
        ConfigError: there is no such optimiser, or it does not take its arguments or these parameters.
    """
    # What a Caffe solver says was held against its rules when it was read.
    if recipe.settings is not None:
        return
    if objective is None:
        check_optimizer(recipe.solver)
    else:
        torch_optimizer(recipe.solver, objective)


def build_inner_solver(recipe: Recipe, objective: Objective, *, total_iterations: int) -> InnerSolver:
    """Caffe's solver where the recipe has the settings of one, else one of torch's.

    Raises:
        ConfigError: there is no such optimiser, or it does not take its arguments or these parameters.
    """
    solver, settings = recipe.solver, recipe.settings
    if settings is None:
        return InnerSolver(
            make=torch_optimizer(solver, objective),
            rate=lambda iteration: learning_rate(solver, iteration, total_iterations),
            batches_per_step=solver.accumulate,
            batch_share=1 / solver.accumulate,
            clip_norm=solver.clip_norm,
        )
    policy = settings.policy
    begun, passed = solver.snapshot_step or (0, 0)

    def rate(iteration: float) -> float:
        # The last round may go past max_iter, since rounds are whole; the rate stays what it was there.
        at = int(iteration) if settings.max_iter is None else min(int(iteration), settings.max_iter)
        # No schedule with a state: whoever resumes, joins or falls back has the rate of the iteration at once.
        return policy_rate(policy, at, settled_step(policy, at, since=(begun, passed)))

    def make() -> CaffeOptimizer:
        return CaffeOptimizer(parameter_groups(objective.learnable), lr=policy.base_lr, rule=settings.rule)

    return InnerSolver(make=make, rate=rate, batches_per_step=recipe.batches_per_step)
