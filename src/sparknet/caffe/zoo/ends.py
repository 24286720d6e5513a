"""What all nets of the zoo share: their inputs, their losses, and the states that have them."""

from sparknet.caffe.dsl import AccuracyLayer, InputLayer, Param, Rule, SoftmaxLayer, SoftmaxWithLoss
from sparknet.caffe.schema import LayerParameter
from sparknet.errors import NetError

__all__ = ["FAST_BIAS", "LABELLED", "LABELLED_TEST", "PLAIN_BIAS", "check_image", "inputs", "outputs"]

FAST_BIAS = (Param(lr_mult=1), Param(lr_mult=2))
"""Biases learn twice as fast as weights."""
PLAIN_BIAS = (Param(lr_mult=1, decay_mult=1), Param(lr_mult=2, decay_mult=0))
"""Biases learn twice as fast and do not decay."""
LABELLED = Rule(not_stages=["deploy"])
"""Every state but that of stage deploy, in which nobody knows the labels."""
LABELLED_TEST = Rule("TEST", not_stages=["deploy"])


def inputs(shape: tuple[int, ...], batch_size: int) -> list[LayerParameter]:
    """The rows and their labels."""
    return [
        InputLayer("data", shape=[batch_size, *shape]),
        InputLayer("label", shape=[batch_size], include=LABELLED),
    ]


def outputs(scores: str, *, top5: bool = False) -> list[LayerParameter]:
    """Accuracy and loss, or in stage deploy the probabilities.

    Args:
        scores: the blob [batch, classes].
        top5: whether a hit among the five best is counted too.
    """
    bottoms = [scores, "label"]
    # In TEST only, as in the published files: in training it would cost time at each step.
    layers = [AccuracyLayer("accuracy", bottoms, include=LABELLED_TEST)]
    if top5:
        layers.append(AccuracyLayer("accuracy_top5", bottoms, top_k=5, include=LABELLED_TEST))
    return [
        *layers,
        SoftmaxWithLoss("loss", bottoms, include=LABELLED),
        SoftmaxLayer("prob", [scores], include=Rule(stages=["deploy"])),
    ]


def check_image(net: str, shape: tuple[int, ...], *, least: int) -> None:
    """Refuse what is no image or is smaller than a net's windows.

    Raises:
        NetError: the input is not three-dimensional or too small.
    """
    if len(shape) != 3:
        raise NetError(
            f"{net}: the input has shape {shape}, {len(shape)} dimensions; "
            f"expected 3, (channels, height, width): set data.shape or choose another net"
        )
    channels, height, width = shape
    if channels < 1 or min(height, width) < least:
        raise NetError(
            f"{net}: the input has shape {shape}; expected at least 1 channel of {least}x{least}: "
            f"give larger images or choose another net"
        )
