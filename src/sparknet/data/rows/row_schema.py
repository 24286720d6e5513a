"""What the rows of a source or of the store are, as far as it can be said without reading them all."""

from dataclasses import dataclass

from sparknet.data.rows.columns import MOST_CLASSES, Column

__all__ = ["RowSchema", "SourceRows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSchema:
    """The columns of a row and the range of its label."""

    input: Column
    """What the net is given; shape () where only the rows themselves tell, as of encoded images, whose `image` says
    how they become pixels."""
    label: Column
    """The class."""
    classes: int | None = None
    """Labels are below this; None where only the rows tell."""

    @property
    def label_bound(self) -> int:
        """Labels are certainly below this."""
        return self.classes or MOST_CLASSES


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRows:
    """The columns of a source."""

    input: Column
    """What the net is given; shape () where only the rows themselves tell, as encoded images do."""
    label: Column
    """The class."""
    classes: int | None
    """Labels are below this; None where only the rows tell."""
    encoded: bool = False
    """The input is images as files (JPEG, PNG, …), which decode to `input.dtype`."""
