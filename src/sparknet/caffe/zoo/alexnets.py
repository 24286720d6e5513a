"""AlexNet, and Caffe's variant of it."""

from typing import Any

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.dsl import (
    ConvolutionLayer,
    DropoutLayer,
    InnerProductLayer,
    LRNLayer,
    NetParam,
    Pooling,
    PoolingLayer,
    ReLULayer,
    constant,
    gaussian,
)
from sparknet.caffe.schema import LayerParameter
from sparknet.caffe.zoo.ends import PLAIN_BIAS, check_image, inputs, outputs

__all__ = ["alexnet", "caffenet"]

_LEAST = 39  # below it the last pooling has no window


def caffenet(
    *, input_shape: tuple[int, ...] = (3, 227, 227), classes: int = 1000, batch_size: int = 256
) -> NetSpec:
    """CaffeNet (models/bvlc_reference_caffenet/train_val.prototxt); 60,965,224 parameters.

    AlexNet with pooling before normalisation, which costs less, and with biases of 1 where AlexNet's start at 0.1.

    Args:
        input_shape: (channels, height, width), at least 39x39.
        classes: width of the last layer.
        batch_size: rows of an input.

    Raises:
        NetError: the input is not three-dimensional or too small.
    """
    check_image("caffenet", input_shape, least=_LEAST)
    return NetParam(
        "CaffeNet",
        *inputs(input_shape, batch_size),
        *_convolution(1, "data", kernel=11, num_output=96, stride=4),
        _pool(1, "conv1"),
        _norm(1, "pool1"),
        *_convolution(2, "norm1", kernel=5, num_output=256, pad=2, group=2, start=1),
        _pool(2, "conv2"),
        _norm(2, "pool2"),
        *_upper_half("norm2", classes, start=1),
    )


def alexnet(*, input_shape: tuple[int, ...] = (3, 227, 227), classes: int = 1000, batch_size: int = 256) -> NetSpec:
    """AlexNet (models/bvlc_alexnet/train_val.prototxt, Krizhevsky et al. 2012); 60,965,224 parameters.

    Args:
        input_shape: (channels, height, width), at least 39x39.
        classes: width of the last layer.
        batch_size: rows of an input.

    Raises:
        NetError: the input is not three-dimensional or too small.
    """
    check_image("alexnet", input_shape, least=_LEAST)
    return NetParam(
        "AlexNet",
        *inputs(input_shape, batch_size),
        *_convolution(1, "data", kernel=11, num_output=96, stride=4),
        _norm(1, "conv1"),
        _pool(1, "norm1"),
        *_convolution(2, "pool1", kernel=5, num_output=256, pad=2, group=2, start=0.1),
        _norm(2, "conv2"),
        _pool(2, "norm2"),
        *_upper_half("pool2", classes, start=0.1),
    )


def _upper_half(bottom: str, classes: int, *, start: float) -> list[LayerParameter]:
    """What follows the second pooling, the same in both."""
    return [
        *_convolution(3, bottom, kernel=3, num_output=384, pad=1),
        # Two groups: on the paper's two GPUs each half of the channels saw only itself. Biases above 0 give these
        # ReLUs something to pass on from the first step (section 5 of the paper).
        *_convolution(4, "conv3", kernel=3, num_output=384, pad=1, group=2, start=start),
        *_convolution(5, "conv4", kernel=3, num_output=256, pad=1, group=2, start=start),
        _pool(5, "conv5"),
        *_connected(6, "pool5", start),
        *_connected(7, "fc6", start),
        InnerProductLayer("fc8", ["fc7"], num_output=classes, **_learned(0.01, 0)),
        *outputs("fc8", top5=True),
    ]


def _convolution(number: int, bottom: str, *, start: float = 0, **size: Any) -> list[LayerParameter]:
    name = f"conv{number}"
    return [
        ConvolutionLayer(name, [bottom], **size, **_learned(0.01, start)),
        ReLULayer(f"relu{number}", [name], in_place=True),
    ]


def _connected(number: int, bottom: str, start: float) -> list[LayerParameter]:
    name = f"fc{number}"
    return [
        InnerProductLayer(name, [bottom], num_output=4096, **_learned(0.005, start)),
        ReLULayer(f"relu{number}", [name], in_place=True),
        DropoutLayer(f"drop{number}", [name], ratio=0.5, in_place=True),
    ]


def _pool(number: int, bottom: str) -> LayerParameter:
    return PoolingLayer(f"pool{number}", [bottom], Pooling.Max, kernel=3, stride=2)


def _norm(number: int, bottom: str) -> LayerParameter:
    # The paper's alpha of 1e-4 is not divided by the 5 channels; Caffe's is, and its published nets keep the
    # number.
    return LRNLayer(f"norm{number}", [bottom], local_size=5, alpha=1e-4, beta=0.75)


def _learned(std: float, start: float) -> dict[str, Any]:
    return {"weight_filler": gaussian(std=std), "bias_filler": constant(start), "params": PLAIN_BIAS}
