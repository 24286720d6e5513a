"""What a fit tells of itself, from the events of its run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TrainingSummary", "history_of"]

_OF_A_ROUND = ("iteration", "loss", "learning_rate", "images_per_second", "sync_share")
_MEASURES = ("accuracy", "top5", "loss")


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class TrainingSummary:
    """How a model was trained."""

    history: "pd.DataFrame"
    """A row for each round: its number, `iteration`, the training `loss`, `learning_rate`, `images_per_second` and
    `sync_share`; and of rounds that were validated `validation_accuracy` and so on, else nan."""
    result: Mapping[str, Any]
    """What `result.json` of the run holds: measures of the last validation, seconds, workers, failures."""

    @property
    def objectiveHistory(self) -> list[float]:
        """The mean training loss of each round."""
        return self.history["loss"].tolist()

    @property
    def totalIterations(self) -> int:
        """Local steps of each worker."""
        return int(self.history["iteration"].iloc[-1]) if len(self.history) else 0


def history_of(events: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """The rounds of a run, from its events in their order.

    A round that was taken back and trained once more counts as it was the last time.
    """
    import pandas as pd  # half a second, and most programs never look

    rounds: dict[int, dict[str, Any]] = {}
    for event in events:
        match event.get("event"):
            case "rollback":
                rounds = {number: row for number, row in rounds.items() if number <= event["to_round"]}
            case "round":
                rounds[event["round"]] = {key: event[key] for key in _OF_A_ROUND if key in event}
            case "evaluation":
                found = {key: event[key] for key in _MEASURES if key in event} | event.get("outputs", {})
                row = rounds.setdefault(event["round"], {})
                row |= {f"validation_{key}": value for key, value in found.items()}
            case _:
                pass
    frame = pd.DataFrame.from_dict(rounds, orient="index")
    frame.index.name = "round"
    return frame.reset_index() if len(frame) else pd.DataFrame({"round": [], "iteration": [], "loss": []})
