"""What the rows of a source are, as far as it can be said without reading them all."""

from dataclasses import dataclass

from sparknet.data.rows.columns import Column

__all__ = ["SourceRows"]


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
