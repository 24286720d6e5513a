"""LeNet."""

from typing import Any

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.dsl import (
    ConvolutionLayer,
    InnerProductLayer,
    NetParam,
    Pooling,
    PoolingLayer,
    ReLULayer,
    constant,
    xavier,
)
from sparknet.caffe.zoo.ends import FAST_BIAS, check_image, inputs, outputs

__all__ = ["lenet"]


def lenet(*, input_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10, batch_size: int = 64) -> NetSpec:
    """LeNet as Caffe ships it (examples/mnist/lenet_train_test.prototxt); 431,080 parameters.

    Caffe feeds it bytes times 1/256.

    Args:
        input_shape: (channels, height, width), at least 14x14.
        classes: width of the last layer.
        batch_size: rows of an input.

    Raises:
        NetError: the input is not three-dimensional or too small.
    """
    check_image("lenet", input_shape, least=14)
    learned: dict[str, Any] = {"weight_filler": xavier(), "bias_filler": constant(), "params": FAST_BIAS}
    return NetParam(
        "LeNet",
        *inputs(input_shape, batch_size),
        # As published: only ip1 has a ReLU.
        ConvolutionLayer("conv1", ["data"], kernel=5, num_output=20, **learned),
        PoolingLayer("pool1", ["conv1"], Pooling.Max, kernel=2, stride=2),
        ConvolutionLayer("conv2", ["pool1"], kernel=5, num_output=50, **learned),
        PoolingLayer("pool2", ["conv2"], Pooling.Max, kernel=2, stride=2),
        InnerProductLayer("ip1", ["pool2"], num_output=500, **learned),
        ReLULayer("relu1", ["ip1"], in_place=True),
        InnerProductLayer("ip2", ["ip1"], num_output=classes, **learned),
        *outputs("ip2"),
    )
