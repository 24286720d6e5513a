"""Optimisers: torch's SGD for modules of one's own, and Caffe's solver."""

from sparknet.training.solver.caffe_solver import CaffeSolver
from sparknet.training.solver.policies import RatePolicy, RateSchedule, policy_rate, policy_step, settled_step
from sparknet.training.solver.settings import SolverSettings
from sparknet.training.solver.torch_sgd import build_optimizer, learning_rate, set_learning_rate
from sparknet.training.solver.updates import CaffeOptimizer, UpdateRule, parameter_groups

__all__ = [
    "CaffeOptimizer",
    "CaffeSolver",
    "RatePolicy",
    "RateSchedule",
    "SolverSettings",
    "UpdateRule",
    "build_optimizer",
    "learning_rate",
    "parameter_groups",
    "policy_rate",
    "policy_step",
    "set_learning_rate",
    "settled_step",
]
