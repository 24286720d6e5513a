"""Where a net begins and ends: inputs, losses, what is measured."""

from collections.abc import Sequence
from typing import Literal, Unpack

from sparknet.caffe.dsl.message import Blobs, Options, make
from sparknet.caffe.schema import LayerParameter

__all__ = [
    "AccuracyLayer",
    "EuclideanLoss",
    "InputLayer",
    "Normalization",
    "RDDLayer",
    "SigmoidCrossEntropyLoss",
    "SoftmaxLayer",
    "SoftmaxWithLoss",
]

Normalization = Literal["FULL", "VALID", "BATCH_SIZE", "NONE"]
"""What a loss is divided by: all labels, those not ignored, the batch size, or nothing."""


def InputLayer(name: str, shape: Sequence[int], **options: Unpack[Options]) -> LayerParameter:
    """A blob that the net is given.

    Args:
        name: the layer's name, and the blob's.
        shape: with the batch axis.
        options: see `Options`.
    """
    return make("Input", name, (), options, shape={"dim": shape})


def RDDLayer(name: str, shape: Sequence[int], **options: Unpack[Options]) -> LayerParameter:
    """`InputLayer` under the name that the original SparkNet had for an input that the cluster feeds."""
    return InputLayer(name, shape, **options)


def SoftmaxLayer(name: str, bottoms: Blobs, *, axis: int = 1, **options: Unpack[Options]) -> LayerParameter:
    """Scores to probabilities."""
    return make("Softmax", name, bottoms, options, axis=axis)


def SoftmaxWithLoss(
    name: str,
    bottoms: Blobs,
    *,
    axis: int = 1,
    ignore_label: int | None = None,
    normalization: Normalization = "VALID",
    **options: Unpack[Options],
) -> LayerParameter:
    """Mean of -ln of the true class's probability; bottoms: scores, labels."""
    # axis is of softmax_param, the others of loss_param: `make` finds the message of each.
    return make(
        "SoftmaxWithLoss",
        name,
        bottoms,
        options,
        axis=axis,
        ignore_label=ignore_label,
        normalization=normalization,
    )


def SigmoidCrossEntropyLoss(
    name: str,
    bottoms: Blobs,
    *,
    ignore_label: int | None = None,
    normalization: Normalization = "VALID",
    **options: Unpack[Options],
) -> LayerParameter:
    """Cross-entropy of independent probabilities; bottoms: scores, targets 0..1 of the same shape."""
    return make(
        "SigmoidCrossEntropyLoss",
        name,
        bottoms,
        options,
        ignore_label=ignore_label,
        normalization=normalization,
    )


def EuclideanLoss(name: str, bottoms: Blobs, **options: Unpack[Options]) -> LayerParameter:
    """Half the mean squared distance of two bottoms."""
    return make("EuclideanLoss", name, bottoms, options)


def AccuracyLayer(
    name: str,
    bottoms: Blobs,
    *,
    top_k: int = 1,
    axis: int = 1,
    ignore_label: int | None = None,
    **options: Unpack[Options],
) -> LayerParameter:
    """Share of rows whose true class is among the `top_k` best scores; bottoms: scores, labels."""
    return make("Accuracy", name, bottoms, options, top_k=top_k, axis=axis, ignore_label=ignore_label)
