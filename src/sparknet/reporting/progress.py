"""Where a run stands: what the records so far add up to, without any drawing."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sparknet.reporting.record import Record, headline, measures, number, numbers, text, whole

__all__ = ["Progress"]

RECENT_ROUNDS = 10
"""Rounds over which speed and the share of synchronising are averaged, so that the numbers hold still."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """The state of a run as the records tell it; `apply` is its only way to change."""

    run_dir: str = ""
    rounds: int = 0
    """Rounds the run will have; 0 until it has started."""
    done: int = 0
    """Rounds committed, those before a resume included."""
    workers: int = 0
    """Workers asked for."""
    live: set[int] = field(default_factory=set[int])
    """Slots whose workers are alive."""
    measured: tuple[str, str] = ("accuracy", "-")
    """Name and value of what the last validation came to."""
    losses: list[float] = field(default_factory=list[float])
    """Training loss of every round committed."""
    elapsed_seconds: float = 0.0
    """When the last record was made, since the run began."""
    ended: bool = False
    _speeds: deque[float] = field(default_factory=lambda: deque[float](maxlen=RECENT_ROUNDS))
    _sync_shares: deque[float] = field(default_factory=lambda: deque[float](maxlen=RECENT_ROUNDS))
    _first_round: int = 0
    _first_seconds: float = math.nan

    def apply(self, record: Record) -> None:
        """Take in one record; kinds unknown here change nothing but the time."""
        elapsed = number(record, "elapsed_seconds")
        if math.isfinite(elapsed):
            self.elapsed_seconds = elapsed
        changes: dict[str, Callable[[Record], None]] = {
            "run_started": self._start,
            "run_resumed": self._resume,
            "round": self._commit,
            "evaluation": self._evaluate,
            "worker_joined": self._join,
            "worker_returned": self._join,
            "worker_lost": self._lose,
            "quorum": self._decide,
            "rollback": self._roll_back,
            "run_finished": self._end,
            "run_stopped": self._end,
            "run_failed": self._end,
        }
        change = changes.get(text(record, "event"))
        if change is not None:
            change(record)

    @property
    def loss(self) -> float:
        """Training loss of the last round; NaN before the first."""
        return self.losses[-1] if self.losses else math.nan

    @property
    def images_per_second(self) -> float:
        """Mean of the recent rounds, all workers together; NaN before the first."""
        return _mean(self._speeds)

    @property
    def sync_share(self) -> float:
        """Share of the recent rounds' time in which workers waited or exchanged, 0..1; NaN before the first."""
        return _mean(self._sync_shares)

    @property
    def remaining_seconds(self) -> float:
        """Time for the rounds left at the pace since the first round here; NaN before two rounds."""
        here = self.done - self._first_round
        # One round has no pace: its end is where the clock starts.
        if here < 1:
            return math.nan
        pace = (self.elapsed_seconds - self._first_seconds) / here
        return pace * max(0, self.rounds - self.done)

    def _start(self, record: Record) -> None:
        self.run_dir = text(record, "run_dir")
        self.rounds = whole(record, "rounds")
        self.workers = whole(record, "workers")
        self.done = max(0, whole(record, "first_round") - 1)

    def _commit(self, record: Record) -> None:
        self.done = whole(record, "round")
        if math.isnan(self._first_seconds) or self.done < self._first_round:
            # the pace counts from the first round's end: Spark's start and the first batches are no measure
            self._first_round, self._first_seconds = self.done, self.elapsed_seconds
        self.losses.append(number(record, "loss"))
        self._speeds.append(number(record, "images_per_second"))
        self._sync_shares.append(number(record, "sync_share"))

    def _join(self, record: Record) -> None:
        self.live.add(whole(record, "slot"))

    def _lose(self, record: Record) -> None:
        self.live.discard(whole(record, "slot"))

    def _decide(self, record: Record) -> None:
        # The driver's word: whatever was missed of joining and leaving is made good here.
        self.live = set(numbers(record, "slots"))

    def _evaluate(self, record: Record) -> None:
        self.measured = headline(record)

    def _return_to(self, round_number: int) -> None:
        # A resumed run's earlier losses are not known here, so there may be fewer than rounds.
        del self.losses[max(0, len(self.losses) - (self.done - round_number)) :]
        self.done = round_number

    def _roll_back(self, record: Record) -> None:
        self._return_to(whole(record, "to_round"))

    def _resume(self, record: Record) -> None:
        self._return_to(whole(record, "round"))

    def _end(self, record: Record) -> None:
        self.ended = True
        if measures(record):
            self.measured = headline(record)


def _mean(values: deque[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
