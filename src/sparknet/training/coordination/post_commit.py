"""What must be done once after a commit: parts of the evaluation, and the checkpoint.

Each chore is handed to one worker at a time and goes back when that worker dies, so it counts exactly once,
whoever lives.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypedDict

from sparknet.training.coordination.messages import Checkpoint, ChoreReport, Evaluate

__all__ = [
    "CHECKPOINT",
    "STANDARD",
    "Chores",
    "Conclude",
    "Evaluation",
    "Measures",
    "add_up",
    "as_fields",
    "means",
]

CHECKPOINT = -1
"""The part number that stands for the checkpoint."""
STANDARD: Final = ("accuracy", "top5", "loss")
"""Measures that have a field of their own in events and results: shares of 0..1, and the mean loss."""


class Measures(TypedDict, total=False):
    """Measures as the fields that events and results have for them; what was not measured is not there."""

    accuracy: float
    top5: float
    loss: float
    outputs: dict[str, float]
    """The others, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Validation result of one round."""

    round: int
    rows: int
    """Held-out rows that were looked at; those of a second look, where all had had their first, count again."""
    outputs: dict[str, float]
    """Mean of each measure over these rows."""
    seconds: float

    def as_record(self, held_out: int = 0) -> dict[str, object]:
        """The fields of an `evaluation` event; `held_out` rows there are, 0: as many as were looked at."""
        again = {"looked_at": self.rows} if 0 < held_out < self.rows else {}
        rows = held_out if again else self.rows
        return {"round": self.round, **as_fields(self.outputs), "rows": rows, **again, "seconds": self.seconds}


def as_fields(outputs: Mapping[str, float]) -> Measures:
    """Measures as fields of a record: the standard ones by their names, the others together as `outputs`."""
    fields = Measures()
    for name in STANDARD:
        if name in outputs:
            fields[name] = outputs[name]
    if others := {name: value for name, value in outputs.items() if name not in STANDARD}:
        fields["outputs"] = others
    return fields


Conclude = Callable[[Mapping[str, tuple[float, ...]], int], dict[str, float]]
"""Makes measures of the sums over all rows, and of their number."""


def add_up(parts: Iterable[Mapping[str, tuple[float, ...]]]) -> dict[str, tuple[float, ...]]:
    """Add the sums of parts, in their order."""
    total: dict[str, tuple[float, ...]] = {}
    for part in parts:
        for name, values in part.items():
            before = total.get(name, (0.0,) * len(values))
            total[name] = tuple(one + other for one, other in zip(before, values, strict=True))
    return total


def means(sums: Mapping[str, tuple[float, ...]], rows: int) -> dict[str, float]:
    """Measures that are means over the rows, of sums that are single numbers."""
    return {name: values[0] / rows for name, values in sums.items()}


class Chores:
    """The outstanding chores of one round; truthy while any is not finished."""

    def __init__(
        self,
        *,
        round: int = 0,
        parts: int = 0,
        checkpoint: bool = False,
        checkpoint_last: bool = False,
        conclude: Conclude | None = None,
    ) -> None:
        self.round = round
        self.parts = parts
        self._checkpoint_last = checkpoint_last
        self._conclude = conclude or means
        self.evaluation: Evaluation | None = None
        """Set when the last part has come in."""
        self._owner: dict[int, int | None] = dict.fromkeys(range(parts))
        if checkpoint:
            self._owner[CHECKPOINT] = None
        self._reports: dict[int, ChoreReport] = {}
        self._began: float | None = None

    def __bool__(self) -> bool:
        return bool(self._owner)

    def next_for(self, slot: int, *, checkpoints: bool, now: float) -> Evaluate | Checkpoint | None:
        """Hand a free chore to `slot`, the checkpoint only when `checkpoints`; None when there is none."""
        # None is a free chore. A finished one is no key any more, and the default keeps it from looking free.
        waits = self._checkpoint_last and len(self._reports) < self.parts
        if checkpoints and not waits and self._owner.get(CHECKPOINT, slot) is None:
            self._owner[CHECKPOINT] = slot
            return Checkpoint(round=self.round)
        for part in range(self.parts):
            if self._owner.get(part, slot) is None:
                self._owner[part] = slot
                self._began = now if self._began is None else self._began
                return Evaluate(round=self.round, part=part, parts=self.parts)
        return None

    def ask_for_checkpoint(self) -> None:
        """Add the checkpoint, if it is not among the chores yet."""
        self._owner.setdefault(CHECKPOINT, None)

    def give_back(self, slot: int) -> None:
        """Free the chores of a worker that died."""
        for part, owner in self._owner.items():
            if owner == slot:
                self._owner[part] = None

    def finish(self, report: ChoreReport, now: float) -> bool:
        """Take a report; False when that chore was already finished by somebody else."""
        # A worker that was silent for a while reports a part that went to another one: it must not count twice.
        if report.part not in self._owner:
            return False
        del self._owner[report.part]
        if report.part != CHECKPOINT:
            self._reports[report.part] = report
            if len(self._reports) == self.parts:
                self._sum(now)
        return True

    def _sum(self, now: float) -> None:
        # In part order, not as they came: a float sum depends on its order, and runs must repeat to the last bit.
        reports = [self._reports[part] for part in range(self.parts)]
        rows = sum(report.rows for report in reports)
        self.evaluation = Evaluation(
            round=self.round,
            rows=rows,
            outputs=self._conclude(add_up(report.sums for report in reports), rows),
            seconds=now - (now if self._began is None else self._began),
        )
