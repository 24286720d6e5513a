"""What workers' errors have in common: whether another attempt may help."""

from collections import Counter

from sparknet.training.coordination.messages import Failed

__all__ = ["WorkerErrors"]

MAX_SAME_ERRORS = 3
"""The same error of one slot so often in a row, without a commit of its own, is the net's or the data's fault."""
MAX_AT_ONE_PLACE = 2
"""So many errors at one line of the user's code in a run, whichever workers meet them, are a fault there."""


class WorkerErrors:
    """Remembers what workers failed of.

    Attributes:
        last: the last error that was told and that its slot has not recovered from.
    """

    def __init__(self) -> None:
        self.last: Failed | None = None
        self._in_a_row: dict[int, tuple[str, int]] = {}
        self._at: Counter[str] = Counter()

    def add(self, error: Failed) -> bool:
        """Take note of an error; whether it ends the run, since no attempt will go better."""
        self.last = error
        cause, times = self._in_a_row.get(error.slot, ("", 0))
        times = times + 1 if cause == error.cause else 1
        self._in_a_row[error.slot] = (error.cause, times)
        if error.place:
            # In the whole run and not in a row: a fault in step 25 is met again after each two rounds of ten.
            self._at[error.place] += 1
        return error.fatal or times >= MAX_SAME_ERRORS or self._at[error.place] >= MAX_AT_ONE_PLACE

    def recovered(self, slot: int) -> None:
        """An attempt of the slot took part in a committed round."""
        self._in_a_row.pop(slot, None)
        if self.last is not None and self.last.slot == slot:
            self.last = None
