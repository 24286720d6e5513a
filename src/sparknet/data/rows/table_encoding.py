"""How columns of a table become numbers: which columns, in which order, and what their words stand for.

Learned from the training rows once and kept with them, so that rows read later, in a test or a prediction, are
encoded in the same way.
"""

from dataclasses import dataclass

__all__ = ["Feature", "TableEncoding"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """One column of a table as part of the input."""

    name: str
    """The column's name in the DataFrame."""
    words: tuple[str, ...] = ()
    """What the column may say, sorted; a row has a 1 in the place of its word. Empty: the column holds numbers."""
    width: int = 1
    """Numbers that the column gives the input: as many as words, or the length of its arrays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableEncoding:
    """What the input and the label of a table are made of."""

    features: tuple[Feature, ...] = ()
    """The columns of the input in their order; empty: the input is one column and needs nothing learned."""
    label_words: tuple[str, ...] = ()
    """What the labels say, sorted: word n is class n. Empty: the labels are numbers."""

    @property
    def width(self) -> int:
        """Numbers in one row of the input."""
        return sum(feature.width for feature in self.features)
