"""Damaged rows: counted, the first of them described, and held against what the user allows."""

from collections.abc import Iterable
from dataclasses import dataclass

from sparknet.errors import DataError

__all__ = ["Damage"]

_MOST_EXAMPLES = 10
_NAMED_IN_ERRORS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """Rows that were left out."""

    rows: int = 0
    """How many."""
    examples: tuple[str, ...] = ()
    """What is wrong with the first ten of them."""

    @classmethod
    def of(cls, complaints: Iterable[str]) -> "Damage":
        """Count complaints, one for each damaged row."""
        every = tuple(complaints)
        return cls(rows=len(every), examples=every[:_MOST_EXAMPLES])

    def __add__(self, other: "Damage") -> "Damage":
        # The first ones by order of partition: the same on every run, whichever task ended first.
        examples = (self.examples + other.examples)[:_MOST_EXAMPLES]
        return Damage(rows=self.rows + other.rows, examples=examples)

    def check(self, rows: int, *, share: float) -> None:
        """Hold the damaged rows against what the user allows.

        Args:
            rows: all rows, the damaged ones among them.
            share: `data.corrupt_share`.

        Raises:
            DataError: more than that share of the rows are damaged.
        """
        # a quotient is rounded as the share itself was; 0.29 * 100 is less than 29
        if self.rows and self.rows / rows > share:
            first = "; ".join(self.examples[:_NAMED_IN_ERRORS])
            raise DataError(
                f"{self.rows} of {rows} rows are damaged, a share of {self.rows / rows:.2g}; at most {share:g} may "
                f"be. The first: {first}: repair or remove them, or set data.corrupt_share"
            )
