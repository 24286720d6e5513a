"""The learning rate as a pure function of the iteration.

One iteration is one local step, counted from the beginning of the run; where paces differ iterations are counted in
shares of a round, so that the workers of a round agree.
"""

import math

from sparknet.config import Solver

__all__ = ["learning_rate"]


def learning_rate(solver: Solver, iteration: float, total: int) -> float:
    """The rate at an iteration.

    With base rate b and, of the iterations that follow a warm-up of w, the share t = (iteration - w) / (total - w)
    that is done, the policies are `fixed` b; `step` b γ^⌊iteration / step_size⌋ and `multistep` b γ^(steps that
    have come), both as Caffe counts them (sgd_solver.cpp), from the first iteration on; `cosine` b (1 + cos(π t)) /
    2 (SGDR, arXiv 1608.03983, equation 5, without restarts); `poly` b (1 - t)^power (sgd_solver.cpp); `linear` b (1
    - t).

    In the warm-up the rate rises in a line, b (iteration + 1) / w (arXiv 1706.02677, section 2.2).

    Args:
        solver: base rate, policy and its constants.
        iteration: local steps since the run began, as the run counts them: round times local_steps.
        total: iterations of the whole run.
    """
    base, warmup = solver.learning_rate, solver.warmup_steps
    if iteration < warmup:
        return base * min(1.0, (iteration + 1) / warmup)
    # Past the end a cosine would rise again, and a power of a negative number be none.
    done = min(1.0, (iteration - warmup) / max(1, total - warmup))
    match solver.policy:
        case "fixed":
            return base
        case "step":
            return base * solver.gamma ** math.floor(iteration / (solver.step_size or 1))
        case "multistep":
            return base * solver.gamma ** sum(iteration >= step for step in solver.steps)
        case "cosine":
            return base * (1 + math.cos(math.pi * done)) / 2
        case "poly":
            return base * (1 - done) ** solver.power
        case "linear":
            return base * (1 - done)
