"""What losses and metrics over class labels have in common: how many labels there are, and which of them count."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from sparknet.caffe.layers.layer import Legal, Shape
from sparknet.caffe.schema.net_format_pb2 import LossParameter
from sparknet.errors import NetError

__all__ = ["Normalizer", "check_label_count", "class_labels", "in_range", "normalizer_of", "with_gradient_of"]

Mode = Literal["FULL", "VALID", "BATCH_SIZE", "NONE"]


def check_label_count(scores: Shape, labels: Shape, axis: int) -> None:
    """Whether there is one label for each position of the scores but for the class axis.

    Raises:
        NetError: there are more or fewer; the message gives the shape that would fit.
    """
    expected = scores[:axis] + scores[axis + 1 :]
    if math.prod(labels) != math.prod(expected):
        raise NetError(
            f"there are {math.prod(labels)} labels, of shape {labels}, for {math.prod(expected)} predictions: "
            f"scores of shape {scores} with the classes along axis {axis} need labels of shape {expected}"
        )


def class_labels(classes: int, *, ignored: int | None = None, ignored_by: str = "") -> dict[int, Legal]:
    """What a layer over scores takes as its second bottom: see `Layer.legal`."""
    room = "num_output of the layer that gives the scores"
    return {
        1: Legal(most=classes - 1, whole=True, ignored=ignored, ignored_by=ignored_by, room=room),
    }


@contextmanager
def in_range(labels: Tensor, count: int, what: str = "label", *, ignored: int | None = None) -> Generator[None]:
    """Around a kernel that looks labels up: tells which of them made it fail.

    They are looked at only then, and on the CPU alone: elsewhere the failure comes late, and nothing can be read
    after it.

    Args:
        labels: int64.
        count: how many there are; they are counted from 0.
        what: what they are called.
        ignored: the label that does not count.

    Raises:
        NetError: one is out of range.
    """
    # The kernels check the range anyway. A look beforehand would be one more pass over the labels, and on a GPU a
    # wait for it.
    try:
        yield
    except (IndexError, RuntimeError) as error:
        if labels.device.type != "cpu":
            raise
        looked_up = labels if ignored is None else labels[labels != ignored]
        wrong = looked_up[(looked_up < 0) | (looked_up >= count)]
        if not wrong.numel():
            raise
        raise NetError(
            f"{what} {int(wrong[0])} is out of range; it must be from 0 to {count - 1}: correct the data, or make "
            "room for it in the net (num_output of the layer that gives the scores)"
        ) from error


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """The number `value` with the gradient of `surrogate`.

    For Caffe's losses whose gradient is not the derivative of the number they report. Exact, while the surrogate
    is finite: what is added is 0.
    """
    return value.detach() + (surrogate - surrogate.detach())


class Normalizer:
    """What a loss is divided by: Caffe's `NormalizationMode`, never less than 1.

    Args:
        mode: FULL, all positions; VALID, those whose label counts; BATCH_SIZE, the axes before the classes;
            NONE, nothing.
        ignore_label: the label that does not count, or None.
    """

    def __init__(self, mode: Mode, ignore_label: int | None) -> None:
        self.mode: Mode = mode
        self.ignore_label = ignore_label
        # Told once: such a loss is a mean, which is one kernel.
        self.is_mean = mode == "FULL" or (mode == "VALID" and ignore_label is None)
        """Whether the divisor is the number of positions."""

    def counts(self, labels: Tensor) -> Tensor | None:
        """Which labels count: bool of their shape; None where all do."""
        return None if self.ignore_label is None else labels != self.ignore_label

    def divisor(self, outer: int, inner: int, counts: Tensor | None) -> Tensor | float:
        """By what to divide.

        Args:
            outer: positions along the axes before the classes.
            inner: positions along the axes behind them.
            counts: what `counts` returned.
        """
        if self.mode == "NONE":
            return 1
        if self.mode == "BATCH_SIZE":
            return outer
        if self.mode == "VALID" and counts is not None:
            return torch.clamp(counts.sum(), min=1)  # all ignored: a loss of 0, not 0/0
        return outer * inner


def normalizer_of(given: LossParameter, default: Mode = "VALID") -> Normalizer:
    """The normaliser that `loss_param` asks for, the deprecated flag `normalize` included.

    Args:
        given: the layer's `loss_param`.
        default: what counts where the file gives neither.
    """
    # softmax_loss_layer.cpp: the newer field wins, and `normalize: false` once meant the batch size.
    mode: Mode = default
    if given.HasField("normalization"):
        mode = _MODES[given.normalization]
    elif given.HasField("normalize"):
        mode = "VALID" if given.normalize else "BATCH_SIZE"
    return Normalizer(mode, given.ignore_label if given.HasField("ignore_label") else None)


_MODES: dict[int, Mode] = {
    LossParameter.FULL: "FULL",
    LossParameter.VALID: "VALID",
    LossParameter.BATCH_SIZE: "BATCH_SIZE",
    LossParameter.NONE: "NONE",
}
