"""SqueezeNet."""

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.dsl import (
    ConcatLayer,
    ConvolutionLayer,
    DropoutLayer,
    NetParam,
    Pooling,
    PoolingLayer,
    ReLULayer,
    gaussian,
    xavier,
)
from sparknet.caffe.schema import LayerParameter
from sparknet.caffe.zoo.ends import check_image, inputs, outputs

__all__ = ["squeezenet"]

_FIRES = {
    2: (16, 64),
    3: (16, 64),
    4: (32, 128),
    5: (32, 128),
    6: (48, 192),
    7: (48, 192),
    8: (64, 256),
    9: (64, 256),
}
# Fires that a pooling follows: earlier than in 1.0 (4 and 8), which costs 2.4 times as much, as its authors say.
_POOLED = (3, 5)


def squeezenet(
    *, input_shape: tuple[int, ...] = (3, 227, 227), classes: int = 1000, batch_size: int = 32
) -> NetSpec:
    """SqueezeNet 1.1 (SqueezeNet_v1.1/train_val.prototxt of its authors, arXiv 1602.07360); 1,235,496 parameters.

    The published solver accumulates 16 batches a step.

    Args:
        input_shape: (channels, height, width), at least 17x17.
        classes: channels of the last layer.
        batch_size: rows of an input.

    Raises:
        NetError: the input is not three-dimensional or too small.
    """
    check_image("squeezenet", input_shape, least=17)
    layers: list[LayerParameter] = [
        ConvolutionLayer("conv1", ["data"], kernel=3, num_output=64, stride=2, weight_filler=xavier()),
        ReLULayer("relu_conv1", ["conv1"], in_place=True),
        PoolingLayer("pool1", ["conv1"], Pooling.Max, kernel=3, stride=2),
    ]
    bottom = "pool1"
    for number, (squeezed, expanded) in _FIRES.items():
        layers += _fire(number, bottom, squeezed, expanded)
        bottom = f"fire{number}/concat"
        if number in _POOLED:
            layers.append(PoolingLayer(f"pool{number}", [bottom], Pooling.Max, kernel=3, stride=2))
            bottom = f"pool{number}"
    return NetParam(
        "SqueezeNet_v1.1",
        *inputs(input_shape, batch_size),
        *layers,
        # No InnerProduct: each class has its plane of scores, whose mean is its score.
        DropoutLayer("drop9", [bottom], ratio=0.5, in_place=True),
        ConvolutionLayer("conv10", [bottom], kernel=1, num_output=classes, weight_filler=gaussian(std=0.01)),
        ReLULayer("relu_conv10", ["conv10"], in_place=True),
        PoolingLayer("pool10", ["conv10"], Pooling.Ave, global_pooling=True),
        *outputs("pool10", top5=True),
    )


def _fire(number: int, bottom: str, squeezed: int, expanded: int) -> list[LayerParameter]:
    """Few channels, from which many are made, some of them with neighbours."""
    prefix = f"fire{number}"
    return [
        *_convolution(prefix, "squeeze1x1", bottom, (1, squeezed)),
        *_convolution(prefix, "expand1x1", f"{prefix}/squeeze1x1", (1, expanded)),
        *_convolution(prefix, "expand3x3", f"{prefix}/squeeze1x1", (3, expanded)),
        ConcatLayer(f"{prefix}/concat", [f"{prefix}/expand1x1", f"{prefix}/expand3x3"]),
    ]


def _convolution(prefix: str, part: str, bottom: str, size: tuple[int, int]) -> list[LayerParameter]:
    kernel, channels = size
    name = f"{prefix}/{part}"
    return [
        ConvolutionLayer(name, [bottom], kernel, channels, pad=kernel // 2, weight_filler=xavier()),
        ReLULayer(f"{prefix}/relu_{part}", [name], in_place=True),
    ]
