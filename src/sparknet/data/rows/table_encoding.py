"""How columns of a table become numbers: which columns, in which order, and what their words stand for.

Learned from the training rows once and kept with them, so that rows read later, in a test or a prediction, are
encoded in the same way.
"""

from dataclasses import dataclass, field

__all__ = ["Category", "Feature", "TableEncoding"]


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
class Category:
    """What the classes of a column stand for."""

    words: tuple[str, ...] = ()
    """Sorted: word n is class n."""
    values: tuple[int, ...] = ()
    """Rising: value n is class n. Of words and values one is empty."""

    @property
    def names(self) -> tuple[str, ...]:
        """The classes by number, as text."""
        return self.words or tuple(str(value) for value in self.values)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableEncoding:
    """What the columns of a table are made of."""

    features: tuple[Feature, ...] = ()
    """The columns that make up the input `features`, in their order; empty: there is none of that name."""
    categories: dict[str, Category] = field(default_factory=dict[str, Category])
    """By column what its classes stand for, where the cells are not the classes themselves."""

    @property
    def width(self) -> int:
        """Numbers in one row of the input `features`."""
        return sum(feature.width for feature in self.features)
