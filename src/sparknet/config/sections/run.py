"""How long to train, with how many workers, and what to keep."""

from dataclasses import dataclass
from typing import Literal

from sparknet.config.rules import all_finite, at_least, require

__all__ = ["EarlyStop", "Run"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStop:
    """When a run ends before its last round."""

    measure: str = ""
    """The measure that must get better; not given: accuracy where the run measures it, else loss."""
    patience: int = 3
    """Validations without a better figure after which the run ends."""
    min_delta: float = 0.0
    """What counts as better: by more than this."""

    def __post_init__(self) -> None:
        all_finite("run.early_stop", self)
        at_least("run.early_stop.patience", self.patience, 1)
        at_least("run.early_stop.min_delta", self.min_delta, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """How long to train, with how many workers, and what to keep."""

    name: str = "run"
    """Names the run directory when none is given: `runs/<name>-<time>`."""
    seed: int = 0
    """Seeds weights, sampling order, split and dropout; the same seed gives the same run."""
    workers: int = 2
    """Replicas, one Spark task each."""
    min_workers: int = 1
    """Start with so many when `cluster.start_seconds` have passed; fewer fails the run."""
    below_min_workers: Literal["wait", "end"] = "wait"
    """What a run does that has fewer than `min_workers` left: it waits for others to come, for
    `cluster.start_seconds`, or it ends as failed, to be resumed."""
    rounds: int | None = None
    """Rounds to train; give this, `iterations` or `epochs`."""
    iterations: int | None = None
    """Local steps of each worker; the last round has fewer where need be. Give this, `rounds` or `epochs`."""
    epochs: float | None = None
    """Passes over the training rows, rounded up to whole steps of all workers; the last round has fewer where need
    be. Give this, `rounds` or `iterations`."""
    make_up: bool = False
    """With `epochs`: where workers were missing in some rounds, go on at the end, at the last learning rate, until
    the passes have really been made; else the result says how many were."""
    eval_every: int = 10
    """Rounds between validations; the last round is always validated. 0: only the last."""
    eval_iterations: int | None = None
    """In place of `eval_every`: local steps between validations; a round ends where one is due."""
    eval_first: bool = False
    """Validate the initial weights too, before the first round."""
    eval_batches: int | None = None
    """Batches of a validation, over the rows from the first on and round again; not given: every row once."""
    checkpoint_every: int = 10
    """Rounds between checkpoints; the last round always gets one. 0: only the last."""
    checkpoint_iterations: int | None = None
    """In place of `checkpoint_every`: local steps between checkpoints; a round ends where one is due."""
    keep_checkpoints: int = 3
    """Checkpoints kept, newest first; at least 2, so that a damaged one has a predecessor."""
    keep: Literal["last", "best"] = "last"
    """Which weights become the model: the last round's, or those of the validation with the best figure."""
    early_stop: EarlyStop | None = None
    """Ends the run when validations no longer improve; not given: it goes on to its last round."""

    def __post_init__(self) -> None:
        all_finite("run", self)
        at_least("run.seed", self.seed, 0)
        at_least("run.workers", self.workers, 1)
        at_least("run.min_workers", self.min_workers, 1)
        require(
            self.min_workers <= self.workers,
            "run.min_workers",
            self.min_workers,
            f"it must not exceed run.workers, which is {self.workers}",
        )
        require(
            (self.rounds, self.iterations, self.epochs).count(None) == 2,
            "run.rounds, run.iterations and run.epochs",
            (self.rounds, self.iterations, self.epochs),
            "exactly one must be given: set run.rounds, run.iterations or run.epochs",
        )
        for key in ("rounds", "iterations", "eval_iterations", "checkpoint_iterations"):
            if getattr(self, key) is not None:
                at_least(f"run.{key}", getattr(self, key), 1)
        if self.epochs is not None:
            require(self.epochs > 0, "run.epochs", self.epochs, "it must be more than 0")
        require(
            not self.make_up or self.epochs is not None,
            "run.make_up",
            self.make_up,
            "what it makes up are passes over the rows: set run.epochs, or leave it out",
        )
        at_least("run.eval_every", self.eval_every, 0)
        for key, judges in (("early_stop", self.early_stop is not None), ("keep", self.keep == "best")):
            require(
                not judges or self.eval_every > 0 or self.eval_iterations is not None,
                "run.eval_every",
                self.eval_every,
                f"run.{key} needs validations on the way: set it to at least 1",
            )
        if self.eval_batches is not None:
            at_least("run.eval_batches", self.eval_batches, 1)
        at_least("run.checkpoint_every", self.checkpoint_every, 0)
        at_least("run.keep_checkpoints", self.keep_checkpoints, 2)
        # It becomes part of a path.
        safe = self.name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        require(safe, "run.name", self.name, "it must be letters, digits, dots, dashes and underscores")
