"""Which validation was the best, and whether the run goes on: pure, from one evaluation to the next."""

from dataclasses import dataclass, replace

from sparknet.errors import ConfigError
from sparknet.training.coordination.post_commit import Evaluation

__all__ = ["Aim", "BestRound", "Judge"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Aim:
    """What a run wants to be good at."""

    measure: str = ""
    """The measure; empty: accuracy where it is measured, else loss."""
    higher: tuple[str, ...] = ("accuracy", "top5")
    """Measures of which the higher figure is the better one; of all others the lower is."""
    min_delta: float = 0.0
    """A figure is better by more than this."""
    patience: int | None = None
    """Validations without a better figure after which the run ends; None: it goes on."""
    keep_best: bool = False
    """The best round's weights are what the run is for."""

    def figure(self, evaluation: Evaluation) -> tuple[str, float]:
        """The measure that counts, and its figure.

        Raises:
            ConfigError: the run does not measure it.
        """
        measured = evaluation.outputs
        name = self.measure or ("accuracy" if "accuracy" in measured else "loss")
        if name not in measured:
            raise ConfigError(
                f"run.early_stop.measure is {name!r}, and the run measures {', '.join(measured)}: set it to one of "
                "these"
            )
        return name, measured[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class BestRound:
    """The best validation so far."""

    round: int
    measure: str
    value: float
    since: int = 0
    """Validations after it, none of them better."""
    judged: int = 0
    """The round of the last validation that was judged."""

    @classmethod
    def judge(cls, best: "BestRound | None", evaluation: Evaluation, aim: Aim) -> "BestRound":
        """What is best after one more evaluation.

        Raises:
            ConfigError: the run does not measure what counts.
        """
        measure, value = aim.figure(evaluation)
        if best is None or _is_better(value, best.value, aim, measure):
            return cls(round=evaluation.round, measure=measure, value=value, judged=evaluation.round)
        return replace(best, since=best.since + 1, judged=evaluation.round)

    def ends_run(self, aim: Aim) -> bool:
        """Whether the run has waited long enough for something better."""
        return aim.patience is not None and self.since >= aim.patience


class Judge:
    """Follows the validations of a run.

    Attributes:
        best: the best one so far; None before the first, and where none matters.
    """

    def __init__(self, aim: Aim | None, best: BestRound | None) -> None:
        self.best = best
        self._aim = aim

    @property
    def ended(self) -> bool:
        """Whether the run is to end for want of something better."""
        return self._aim is not None and self.best is not None and self.best.ends_run(self._aim)

    def take(self, evaluation: Evaluation) -> dict[str, object]:
        """Judge one more validation; what its event says of it.

        Raises:
            ConfigError: the run does not measure what counts.
        """
        # Initial weights are nobody's result.
        if self._aim is None or not evaluation.round:
            return {}
        # The last round's may come once more, when a run is resumed behind it.
        if self.best is None or evaluation.round > self.best.judged:
            self.best = BestRound.judge(self.best, evaluation, self._aim)
        return {"best": self.best.round == evaluation.round}

    def keeps(self, round: int) -> bool:
        """Whether this round's weights must be kept."""
        return self._aim is not None and self._aim.keep_best and self.best is not None and self.best.round == round


def _is_better(value: float, best: float, aim: Aim, measure: str) -> bool:
    # A figure that is not a number is better than none and no better than any; every number is better than it.
    if value != value:
        return False
    if best != best:
        return True
    gain = value - best if _base(measure) in aim.higher or measure in aim.higher else best - value
    return gain > aim.min_delta


def _base(measure: str) -> str:
    """A measure of one class among several is named after the measure of all."""
    return measure.rpartition(".")[0]
