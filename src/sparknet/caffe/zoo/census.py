"""A net for tables: UCI's Adult census."""

from typing import Any

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.dsl import InnerProductLayer, NetParam, ReLULayer, constant, msra, xavier
from sparknet.caffe.zoo.ends import PLAIN_BIAS, inputs, outputs
from sparknet.errors import NetError

__all__ = ["adult"]


def adult(
    *, input_shape: tuple[int, ...] = (123,), classes: int = 2, batch_size: int = 64, hidden: int = 64
) -> NetSpec:
    """A multi-layer perceptron for UCI's Adult census as 123 binary features; 8,066 parameters.

    The features are those of the LIBSVM versions (a1a to a9a): 14 columns of the census, whose numbers are cut into
    ranges and whose categories are one 0 or 1 each. The original SparkNet's example net for this table, an
    InnerProduct of 10 outputs on one column, showed how rows are fed and learned nothing. This is a design of ours:
    one hidden layer, ReLU, two scores.

    Args:
        input_shape: (features,), or any other shape, whose numbers are all features.
        classes: width of the last layer.
        batch_size: rows of an input.
        hidden: width of the hidden layer.

    Raises:
        NetError: there are no features, or `hidden` is below 1.
    """
    if not input_shape or min(input_shape) < 1:
        raise NetError(f"adult: the input has shape {input_shape}; expected at least 1 feature: set data.shape")
    if hidden < 1:
        raise NetError(f"adult: hidden is {hidden}; it must be at least 1: set net.arguments.hidden")
    learned: dict[str, Any] = {"bias_filler": constant(), "params": PLAIN_BIAS}
    return NetParam(
        "Adult",
        *inputs(input_shape, batch_size),
        InnerProductLayer("ip1", ["data"], num_output=hidden, weight_filler=msra(), **learned),
        ReLULayer("relu1", ["ip1"], in_place=True),
        # Scores see no ReLU behind them: Glorot's filler, not He's.
        InnerProductLayer("ip2", ["ip1"], num_output=classes, weight_filler=xavier(), **learned),
        *outputs("ip2"),
    )
