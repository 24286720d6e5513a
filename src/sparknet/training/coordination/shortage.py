"""A run that has fewer live workers than it may go on with."""

from dataclasses import dataclass

from sparknet.training.coordination.rules import Rules

__all__ = ["Short", "Shortage"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Short:
    """There are too few."""

    note: str = ""
    """What is to be told now; it is told once each time that some are missing."""
    failure: str = ""
    """Why the run ends; empty: it waits."""


class Shortage:
    """Knows since when there have been too few."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._since: float | None = None

    def look(self, live: int, now: float) -> Short | None:
        """What follows of so many live workers; None: they are enough."""
        rules = self._rules
        if live >= rules.min_workers:
            self._since = None
            return None
        begins = self._since is None
        self._since = now if self._since is None else self._since
        told = f"{live} of {rules.slots} workers are left, and run.min_workers is {rules.min_workers}"
        if not rules.waits_below or now >= self._since + rules.start_seconds:
            waited = f" after {now - self._since:.0f} s" if rules.waits_below else ""
            return Short(
                failure=f"{told}{waited}: give Spark more cores and resume the run, or lower run.min_workers"
            )
        return Short(note=f"{told}: waiting for others for {rules.start_seconds:.0f} s" if begins else "")
