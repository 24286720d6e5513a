"""The inner optimiser: torch's SGD, with a learning rate that is a function of the iteration."""

import math

import torch
from torch import nn

from sparknet.config import Solver

__all__ = ["build_optimizer", "learning_rate", "set_learning_rate"]


def build_optimizer(solver: Solver, module: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum and weight decay over the module's trainable parameters."""
    return torch.optim.SGD(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=solver.learning_rate,
        momentum=solver.momentum,
        weight_decay=solver.weight_decay,
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
            return solver.learning_rate * (1 + math.cos(math.pi * min(1.0, iteration / total))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameter groups this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
