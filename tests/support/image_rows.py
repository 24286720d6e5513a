"""Rows of one image and one label, as most tests have them."""

from collections.abc import Mapping

from torch import Tensor

from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema

NAMES = ("image", "label")


def image_rows(shape=(3, 8, 8), *, dtype="uint8", classes: int | None = 10, names=NAMES) -> RowSchema:
    """What a row is."""
    image, label = names
    return RowSchema(
        inputs=(Column(name=image, dtype=dtype, shape=shape),),
        targets=(Column(name=label, dtype="int64", shape=(), classes=classes),),
    )


def as_batch(images: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
    """A batch of them."""
    return {"image": images, "label": labels}
