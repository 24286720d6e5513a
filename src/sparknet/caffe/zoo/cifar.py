"""Caffe's two nets for CIFAR-10, which the SparkNet paper trained."""

from typing import Any

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.dsl import (
    ConvolutionLayer,
    InnerProductLayer,
    LRNLayer,
    NetParam,
    Param,
    Pooling,
    PoolingLayer,
    ReLULayer,
    constant,
    gaussian,
)
from sparknet.caffe.zoo.ends import FAST_BIAS, check_image, inputs, outputs

__all__ = ["cifar10_full", "cifar10_quick"]


def cifar10_quick(
    *, input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, batch_size: int = 100
) -> NetSpec:
    """Caffe's quick net (examples/cifar10/cifar10_quick_train_test.prototxt); 145,578 parameters.

    Its first weights, of standard deviation 0.0001, are made for bytes less the mean image, ±128, at a rate of
    0.001. Of inputs brought to ±1 the net learns nothing for a long time.

    Args:
        input_shape: (channels, height, width), at least 8x8.
        classes: width of the last layer.
        batch_size: rows of an input.

    Raises:
        NetError: the input is not three-dimensional or too small.
    """
    check_image("cifar10_quick", input_shape, least=8)
    return NetParam(
        "CIFAR10_quick",
        *inputs(input_shape, batch_size),
        ConvolutionLayer("conv1", ["data"], kernel=5, num_output=32, pad=2, **_learned(0.0001)),
        # As published: behind the maximum, where ReLU gives the same and has a quarter of the numbers.
        PoolingLayer("pool1", ["conv1"], Pooling.Max, kernel=3, stride=2),
        ReLULayer("relu1", ["pool1"], in_place=True),
        ConvolutionLayer("conv2", ["pool1"], kernel=5, num_output=32, pad=2, **_learned(0.01)),
        ReLULayer("relu2", ["conv2"], in_place=True),
        PoolingLayer("pool2", ["conv2"], Pooling.Ave, kernel=3, stride=2),
        ConvolutionLayer("conv3", ["pool2"], kernel=5, num_output=64, pad=2, **_learned(0.01)),
        ReLULayer("relu3", ["conv3"], in_place=True),
        PoolingLayer("pool3", ["conv3"], Pooling.Ave, kernel=3, stride=2),
        InnerProductLayer("ip1", ["pool3"], num_output=64, **_learned(0.1)),
        InnerProductLayer("ip2", ["ip1"], num_output=classes, **_learned(0.1)),
        *outputs("ip2"),
    )


def cifar10_full(
    *, input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, batch_size: int = 100
) -> NetSpec:
    """Caffe's full net (examples/cifar10/cifar10_full_train_test.prototxt); 89,578 parameters.

    What `cifar10_quick` says of the input's scale holds here too. The last layer's weights decay 250 times as fast.

    Args:
        input_shape: (channels, height, width), at least 8x8.
        classes: width of the last layer.
        batch_size: rows of an input.

    Raises:
        NetError: the input is not three-dimensional or too small.
    """
    check_image("cifar10_full", input_shape, least=8)
    norm: dict[str, Any] = {"local_size": 3, "alpha": 5e-5, "beta": 0.75, "norm_region": "WITHIN_CHANNEL"}
    # the published file gives the third convolution no multipliers: its biases learn as fast as its weights
    third: dict[str, Any] = {**_learned(0.01), "params": ()}
    last: dict[str, Any] = {
        **_learned(0.01),
        "params": (Param(lr_mult=1, decay_mult=250), Param(lr_mult=2, decay_mult=0)),
    }
    return NetParam(
        "CIFAR10_full",
        *inputs(input_shape, batch_size),
        ConvolutionLayer("conv1", ["data"], kernel=5, num_output=32, pad=2, **_learned(0.0001)),
        PoolingLayer("pool1", ["conv1"], Pooling.Max, kernel=3, stride=2),
        ReLULayer("relu1", ["pool1"], in_place=True),
        LRNLayer("norm1", ["pool1"], **norm),
        ConvolutionLayer("conv2", ["norm1"], kernel=5, num_output=32, pad=2, **_learned(0.01)),
        ReLULayer("relu2", ["conv2"], in_place=True),
        PoolingLayer("pool2", ["conv2"], Pooling.Ave, kernel=3, stride=2),
        LRNLayer("norm2", ["pool2"], **norm),
        ConvolutionLayer("conv3", ["norm2"], kernel=5, num_output=64, pad=2, **third),
        ReLULayer("relu3", ["conv3"], in_place=True),
        PoolingLayer("pool3", ["conv3"], Pooling.Ave, kernel=3, stride=2),
        InnerProductLayer("ip1", ["pool3"], num_output=classes, **last),
        *outputs("ip1"),
    )


def _learned(std: float) -> dict[str, Any]:
    return {"weight_filler": gaussian(std=std), "bias_filler": constant(), "params": FAST_BIAS}
