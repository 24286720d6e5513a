"""What the rows of a source or of the store are, as far as it can be said without reading them all."""

from dataclasses import dataclass, replace

from sparknet.data.rows.columns import MOST_CLASSES, Column

__all__ = ["RowSchema"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSchema:
    """The columns of a row, and what each is for."""

    inputs: tuple[Column, ...]
    """What the net is given; of shape () where only the rows themselves tell, as of encoded images, whose `image`
    says how they become pixels."""
    targets: tuple[Column, ...]
    """What the loss is given; a column may be an input too."""
    weight: str = ""
    """The column of the rows' weights, float32 of shape (); empty: all rows count alike."""
    class_names: tuple[str, ...] = ()
    """Of the classes of the only target by number, where the source has them."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Every column once: inputs, targets, weights."""
        weight = (Column(name=self.weight, dtype="float32", shape=()),) if self.weight else ()
        found = {column.name: column for column in (*self.inputs, *self.targets, *weight)}
        return tuple(found.values())

    @property
    def input(self) -> Column:
        """The first input: the only one of a net that takes an image."""
        return self.inputs[0]

    @property
    def label(self) -> Column:
        """The first target: the only one of a net that tells a class."""
        return self.targets[0]

    @property
    def classes(self) -> int | None:
        """Classes of the first target that has any; None where only the rows tell, or it has none."""
        return next((column.classes for column in self.targets if column.classes), None)

    @property
    def encoded(self) -> bool:
        """The first input is images as files (JPEG, PNG, …)."""
        return self.input.image is not None

    @property
    def label_bound(self) -> int:
        """Classes are certainly below this."""
        return self.classes or MOST_CLASSES

    def with_input(self, column: Column) -> "RowSchema":
        """These rows with another column in the place of the input of its name."""
        inputs = tuple(column if column.name == one.name else one for one in self.inputs)
        return replace(self, inputs=inputs)
