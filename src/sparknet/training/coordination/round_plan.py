"""How long rounds are, and what is due at their ends."""

from dataclasses import dataclass

from sparknet.config import RunConfig

__all__ = ["RoundPlan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundPlan:
    """A round has `local_steps`, or fewer: it ends where something is due, and with the run.

    An iteration is one local step of every worker. What comes every so many rounds suits the rounds as they are;
    what comes every so many iterations, as in Caffe's solvers, ends them. The plan has no state: where a round ends
    follows from where it begins.
    """

    local_steps: int
    eval_every: int = 0
    """Rounds between validations; 0: none on the way."""
    checkpoint_every: int = 0
    """Rounds between checkpoints; 0: none on the way."""
    eval_iterations: int = 0
    """Iterations between validations, in place of `eval_every`; 0: not counted so."""
    checkpoint_iterations: int = 0
    """Iterations between checkpoints, in place of `checkpoint_every`; 0: not counted so."""
    iterations: int = 0
    """At which the run ends; 0: it ends by its rounds."""

    @classmethod
    def of(cls, config: RunConfig, *, end: int = 0) -> "RoundPlan":
        """The plan of a run; `end` is the iteration at which it ends, where its epochs come to one."""
        run = config.run
        return cls(
            local_steps=config.sync.local_steps,
            eval_every=0 if run.eval_iterations else run.eval_every,
            checkpoint_every=0 if run.checkpoint_iterations else run.checkpoint_every,
            eval_iterations=run.eval_iterations or 0,
            checkpoint_iterations=run.checkpoint_iterations or 0,
            iterations=run.iterations or end,
        )

    def steps_from(self, iteration: int) -> int:
        """Iterations of the round that begins at this one: at least 1."""
        ends = [iteration + self.local_steps]
        for every in (self.eval_iterations, self.checkpoint_iterations):
            if every:
                ends.append(iteration - iteration % every + every)
        # A run that was given fewer iterations than it has made trains no round anyway.
        if self.iterations > iteration:
            ends.append(self.iterations)
        return min(ends) - iteration

    def evaluates(self, round: int, iteration: int) -> bool:
        """Whether a validation is due after this round, which ends at this iteration."""
        return _due(self.eval_every, round) or _due(self.eval_iterations, iteration)

    def checkpoints(self, round: int, iteration: int) -> bool:
        """Whether a checkpoint is due after this round, which ends at this iteration."""
        return _due(self.checkpoint_every, round) or _due(self.checkpoint_iterations, iteration)

    def count_rounds(self, iteration: int, end: int) -> int:
        """Rounds from one iteration until another is reached."""
        rounds = 0
        while iteration < end:
            iteration, rounds = iteration + self.steps_from(iteration), rounds + 1
        return rounds

    def iteration_after(self, rounds: int, iteration: int) -> int:
        """The iteration at which so many rounds end that begin at this one."""
        for _ in range(rounds):
            iteration += self.steps_from(iteration)
        return iteration


def _due(every: int, count: int) -> bool:
    return every > 0 and count % every == 0
