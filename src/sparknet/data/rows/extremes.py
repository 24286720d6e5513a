"""The outermost values of a column: what shows whether all of them are such as somebody takes, and where not."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["Extremes", "Seen"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A value, and where it was seen first."""

    value: int | float
    row: str
    """The row's name, for messages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extremes:
    """The two least and the two greatest values of some rows, and the first one with a fraction.

    Two of each, since one number may be allowed beside a range of others, as `ignore_label` is: if any value is
    outside the range and is not that number, one of these is. Those of two sets of rows add up to those of their
    union.
    """

    seen: tuple[Seen, ...] = ()
    """Sorted by value, each value once."""
    fraction: Seen | None = None
    """None where all values are whole."""

    @classmethod
    def of(cls, values: np.ndarray, name: Callable[[int], str]) -> "Extremes":
        """Look through `values`, uint8, float32 or int64 [n, *shape], all finite.

        Args:
            values: of the rows.
            name: names a row by its place among them.
        """
        flat = values.reshape(-1)
        if not flat.size:
            return cls()
        each = flat.size // len(values)

        def seen(where: np.ndarray) -> Seen:
            at = int(where.argmax())
            return Seen(value=flat[at].item(), row=name(at // each))

        found = {one.value: one for one in (seen(flat == value) for value in _outermost(flat))}
        fraction = None
        if flat.dtype.kind == "f" and (broken := flat != np.trunc(flat)).any():
            fraction = seen(broken)
        return cls(seen=tuple(found[value] for value in sorted(found)), fraction=fraction)

    def __add__(self, other: "Extremes") -> "Extremes":
        """Of both sets of rows; of equal values the place in the first set is kept."""
        both = {one.value: one for one in (*other.seen, *self.seen)}
        kept = sorted(both) if len(both) <= _KEPT else [*sorted(both)[:2], *sorted(both)[-2:]]
        return Extremes(seen=tuple(both[value] for value in kept), fraction=self.fraction or other.fraction)

    def all(self) -> Iterable[Seen]:
        """Everything that is known of the values."""
        return (*self.seen, self.fraction) if self.fraction else self.seen


_KEPT = 4


def _outermost(flat: np.ndarray) -> list[np.generic]:
    """The two least and the two greatest of some values, perhaps some of them twice."""
    least, greatest = flat.min(), flat.max()
    # Most columns of labels are short; masks are bytes, of which these passes take no time.
    between = flat[(flat > least) & (flat < greatest)]
    return [least, greatest, *([between.min(), between.max()] if between.size else [])]
