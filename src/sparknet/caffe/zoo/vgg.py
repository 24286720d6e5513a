"""VGG's net of 16 layers."""

from typing import Any

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.dsl import (
    ConvolutionLayer,
    DropoutLayer,
    InnerProductLayer,
    NetParam,
    Pooling,
    PoolingLayer,
    ReLULayer,
    constant,
    xavier,
)
from sparknet.caffe.schema import LayerParameter
from sparknet.caffe.zoo.ends import PLAIN_BIAS, check_image, inputs, outputs

__all__ = ["vgg16"]

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions
_LEARNED: dict[str, Any] = {"weight_filler": xavier(), "bias_filler": constant(), "params": PLAIN_BIAS}


def vgg16(*, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, batch_size: int = 256) -> NetSpec:
    """VGG's 16 layers (VGG_ILSVRC_16_layers, configuration D of arXiv 1409.1556); 138,357,544 parameters.

    The published file is for inference and has no fillers. The paper began from a smaller trained net and found
    later that Glorot's filler makes that unnecessary (section 3.1): it is used here. The batch size is the paper's.

    Args:
        input_shape: (channels, height, width).
        classes: width of the last layer.
        batch_size: rows of an input.

    Raises:
        NetError: the input is not three-dimensional or too small.
    """
    check_image("vgg16", input_shape, least=1)
    layers: list[LayerParameter] = []
    bottom = "data"
    for stage, (channels, depth) in enumerate(_STAGES, start=1):
        for number in range(1, depth + 1):
            name = f"conv{stage}_{number}"
            layers += [
                ConvolutionLayer(name, [bottom], kernel=3, num_output=channels, pad=1, **_LEARNED),
                ReLULayer(f"relu{stage}_{number}", [name], in_place=True),
            ]
            bottom = name
        # Caffe rounds up, so that even one row and column are left after five halvings.
        layers.append(PoolingLayer(f"pool{stage}", [bottom], Pooling.Max, kernel=2, stride=2))
        bottom = f"pool{stage}"
    for number in (6, 7):
        name = f"fc{number}"
        layers += [
            InnerProductLayer(name, [bottom], num_output=4096, **_LEARNED),
            ReLULayer(f"relu{number}", [name], in_place=True),
            DropoutLayer(f"drop{number}", [name], ratio=0.5, in_place=True),
        ]
        bottom = name
    return NetParam(
        "VGG_ILSVRC_16_layers",
        *inputs(input_shape, batch_size),
        *layers,
        InnerProductLayer("fc8", [bottom], num_output=classes, **_LEARNED),
        *outputs("fc8", top5=True),
    )
