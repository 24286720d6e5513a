"""Axes of blobs, as Caffe counts them."""

from sparknet.caffe.layers.layer import Shape
from sparknet.errors import NetError

__all__ = ["canonical_axis"]


def canonical_axis(axis: int, shape: Shape, field: str = "axis") -> int:
    """The axis counted from the front; a negative one counts from the back.

    Args:
        axis: as the file gives it.
        shape: of the bottom.
        field: what the file calls it.

    Raises:
        NetError: the bottom does not have it.
    """
    if not -len(shape) <= axis < len(shape):
        raise NetError(
            f"{field} is {axis}; the bottom has shape {tuple(shape)}, so it must be from {-len(shape)} "
            f"to {len(shape) - 1}"
        )
    return axis % len(shape)
