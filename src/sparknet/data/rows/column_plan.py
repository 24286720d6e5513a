"""How one column is read: what its cells are and what they become; it travels to the workers."""

from dataclasses import dataclass, replace
from typing import Literal

from sparknet.data.rows.columns import Column, ImageForm

__all__ = ["ColumnPlan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnPlan:
    """How one column of the rows is read."""

    name: str
    """The column's name."""
    dtype: Literal["uint8", "float32", "int64"] | None = None
    """Of lists of numbers; None: float32 of numbers with a fraction, int64 of whole ones."""
    shape: tuple[int, ...] = ()
    """Of one row; () takes the first row's."""
    number_shape: tuple[int, ...] = (1,)
    """Shape of a single number: (1,) as an input, which nets take as a vector of one; () as a target."""
    length: int | None = None
    """Lists are brought to so many values, with `pad` behind; None: all must be of one length."""
    pad: float = 0.0
    """Fills up short lists."""
    truncate: bool = False
    """Long lists are cut; if not, they are an error."""
    classes: int | None = None
    """Single whole numbers are classes below this; 0: how many only the rows tell; None: they are no classes."""
    target: bool = False
    """It is given to a loss, which may take some numbers only: its outermost values are kept."""
    weight: bool = False
    """The numbers are weights: at least 0."""
    form: ImageForm | None = None
    """How images become pixels; None: the source's bytes are pixels."""
    channels: int = 3
    """Of images where `shape` does not say; 0: as many as the first one has."""
    resize: tuple[int, ...] = ()
    """Height and width that images are brought to; (): all must be of one size."""
    keep: Literal["pixels", "encoded"] = "pixels"
    """What is kept of images: pixels, or the files as they are."""
    check_only: bool = False
    """Images that are kept as files may be of any size: they are decoded to see that they are whole, and the pixels
    let go."""
    own_size: Literal["no", "if_needed", "yes"] = "no"
    """Images keep their own sizes, and a square is cut out of each as it is read: never, and another size than the
    first one's is an error; where there are several, which must first be found; or of all."""
    cut: int = 0
    """Side of the square that is cut out of the middle of every image at once; 0: nothing is."""
    threads: int = 1
    """Decode a task's images."""

    def as_trained(self, trained: Column, *, crop: int, threads: int | None = None) -> "ColumnPlan":
        """The same for rows that go straight to a trained net, without being prepared first.

        Args:
            trained: what the column was in training: rows have its shape, and no class beyond its own.
            crop: side of the square that the net is given of an image; 0: all of it. Images that may be of several
                sizes are cut as they are read.
            threads: decode images; not given: as many as before.
        """
        cut = crop if self.own_size != "no" else 0
        return replace(
            self,
            own_size="no",
            cut=cut,
            # Of a cut the source says what the pixels are, or the first of them.
            shape=self.shape if cut else trained.shape,
            classes=trained.classes,
            threads=threads or self.threads,
        )
