"""What a coordinator is told about its run, and how far a run is."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sparknet.data.loading.sampling_order import Cursor
from sparknet.training.coordination.best_round import Aim, BestRound
from sparknet.training.coordination.round_plan import RoundPlan

__all__ = ["Rules", "RunProgress"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What the coordinator is told about the run; the meanings are those of the configuration's keys."""

    slots: int
    rounds: int
    plan: RoundPlan
    samples: int = 0
    """Go on behind the last round until so many samples have been trained on; 0: that is the end."""
    min_workers: int = 1
    waits_below: bool = True
    """A run with fewer live workers than `min_workers` waits for others, for `start_seconds`, and does not end."""
    balanced: bool = False
    evaluation_parts: int = 0
    """Parts that the rows which are measured are handed out in."""
    validation_rows: int = 0
    """Held-out rows that there are; 0: as many as are looked at."""
    evaluate_first: bool = False
    """Evaluate the initial weights before the first round."""
    replicas_agree: bool = True
    """False for strategy none, where replicas differ by design."""
    heartbeat_timeout_seconds: float = 2.0
    hang_seconds: float = 600.0
    grace_seconds: float = 30.0
    start_seconds: float = 300.0
    aim: Aim | None = None
    """Judges the validations; None: none of them matters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProgress:
    """How far a run is: what a checkpoint records beside the weights."""

    round: int = 0
    iteration: int = 0
    """Local steps that a worker has made in these rounds; where paces differ, those that were planned."""
    samples: int = 0
    rounds_by_workers: Mapping[int, int] = field(default_factory=dict[int, int])
    """By how many workers took part, in how many rounds."""
    cursors: Mapping[int, Cursor] = field(default_factory=dict[int, Cursor])
    """Per slot, where its data goes on."""
    order: str = ""
    """Which sampling order the cursors count in: they mean nothing in another."""
    best: BestRound | None = None
    """The best validation so far, where validations are judged."""
