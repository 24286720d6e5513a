"""The learning rate as a pure function of the iteration.

One iteration is one local step, counted from the beginning of the run; where paces differ iterations are counted in
shares of a round, so that the workers of a round agree.
"""

import math

from sparknet.config import Solver

__all__ = ["learning_rate"]


def learning_rate(solver: Solver, iteration: float, total: int) -> float:
    """The rate at an iteration: that of the policy, times a warm-up.

    With base rate b and, of the iterations that follow a warm-up of w, the share t = (iteration - w) / (total - w)
    that is done, from 0 to 1, the policies are

    - fixed: b;
    - step: b γ^⌊iteration / step_size⌋, and multistep: b γ^(steps that have come), both as Caffe counts them
      (sgd_solver.cpp), from the run's first iteration on;
    - cosine: b (1 + cos(π t)) / 2 (SGDR, arXiv 1608.03983, equation 5, without restarts);
    - poly: b (1 - t)^power (sgd_solver.cpp, with the whole run as max_iter), and linear: b (1 - t).

    The warm-up multiplies by (iteration + 1) / w until that is 1 (arXiv 1706.02677, section 2.2): it begins above
    0, so that no step is without effect, and ends at the policy's rate without a jump.

    Args:
        solver: base rate, policy and its constants.
        iteration: local steps since the run began, as the run counts them.
        total: iterations of the whole run.
    """
    warmup = solver.warmup_steps
    risen = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
    return solver.learning_rate * risen * _share(solver, iteration, total)


def _share(solver: Solver, iteration: float, total: int) -> float:
    """What the policy leaves of the base rate, 0 to 1 where gamma is at most 1."""
    warmup = solver.warmup_steps
    # The last round may go past the end, where a cosine would rise again and a power of a negative number be none.
    done = min(1.0, max(0.0, (iteration - warmup) / max(1, total - warmup)))
    match solver.policy:
        case "fixed":
            return 1.0
        case "step":
            return solver.gamma ** math.floor(iteration / (solver.step_size or 1))
        case "multistep":
            return solver.gamma ** sum(iteration >= step for step in solver.steps)
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        case "poly":
            return (1 - done) ** solver.power
        case "linear":
            return 1 - done
