"""Which numbers may stand in a column, as whoever reads it says, held against those that do."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from sparknet.caffe.layers import Legal
from sparknet.data.rows.extremes import Extremes, Seen
from sparknet.errors import DataError

__all__ = ["LabelRule", "check_extremes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRule:
    """What one reader of a column takes."""

    column: str
    reader: str
    """Who it is, to begin a message: of a layer its name and type, with file and line."""
    legal: Legal

    def is_broken(self, values: np.ndarray) -> np.ndarray:
        """Which of `values`, of any numeric dtype, it does not take: bool of their shape."""
        legal = self.legal
        broken = (values < legal.least) | (values > legal.most)
        if legal.whole:
            broken |= values != np.trunc(values)
        return broken if legal.ignored is None else broken & (values != legal.ignored)

    def is_like(self, other: "LabelRule") -> bool:
        """Whether both take the same numbers of one column."""
        here, there = ((one.column, replace(one.legal, ignored_by="", room="")) for one in (self, other))
        return here == there

    def fault(self, seen: Seen, *, least: float) -> DataError:
        """The error that says so of a value.

        Args:
            seen: the value, and where it stands.
            least: of all values that are known.
        """
        legal = self.legal
        kind = "whole numbers" if legal.whole else "numbers"
        beside = "" if legal.ignored is None else f", and {legal.ignored}, which does not count"
        return DataError(
            f"{self.reader}: column {self.column} has {_told(seen.value)} in {seen.row}; it takes {kind} from "
            f"{legal.least} to {legal.most}{beside}: {self._remedy(seen.value, least)}"
        )

    def _remedy(self, value: float, least: float) -> str:
        legal, whole = self.legal, value == int(value)
        if not whole or not legal.room or value < 0:
            remedy = "correct the rows"
        elif value == legal.most + 1 and least == 1:
            # By far the commonest fault, of lists that other programs wrote.
            remedy = (
                f"the labels are numbered from 1, and must be from 0: take 1 off each, or set {legal.room} to "
                f"{int(value) + 1}"
            )
        else:
            remedy = f"correct the rows, or set {legal.room} to {int(value) + 1} at least"
        if whole and legal.ignored_by and (legal.ignored is None or value < 0):
            remedy += f"; if {int(value)} marks what does not count, set {legal.ignored_by} to {int(value)}"
        return remedy


def check_extremes(rules: Iterable[LabelRule], extremes: Mapping[str, Extremes]) -> None:
    """Hold what is known of some rows against the rules of those who read them.

    Raises:
        DataError: there is a value that one of them does not take; it names reader, row and range.
    """
    for rule in rules:
        known = list(extremes.get(rule.column, Extremes()).all())
        # One by one, since whole numbers beyond 2**53 are no floats. The greatest first: of labels from 1 it is
        # the one that is wrong.
        for seen in reversed(known):
            if rule.is_broken(np.asarray(seen.value)):
                raise rule.fault(seen, least=min(one.value for one in known))


def _told(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6g}"
