"""What the rows of a source or of the store are, as far as it can be said without reading them all."""

from dataclasses import dataclass

from sparknet.data.rows.columns import MOST_CLASSES, Column

__all__ = ["RowSchema"]


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
    class_names: tuple[str, ...] = ()
    """Of the classes by number, where the source has them."""

    @property
    def encoded(self) -> bool:
        """The input is images as files (JPEG, PNG, …)."""
        return self.input.image is not None

    @property
    def label_bound(self) -> int:
        """Labels are certainly below this."""
        return self.classes or MOST_CLASSES
