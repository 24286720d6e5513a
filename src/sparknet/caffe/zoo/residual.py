"""Residual nets of He et al. (arXiv 1512.03385)."""

from collections.abc import Sequence

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.dsl import (
    BatchNormLayer,
    ConvolutionLayer,
    EltwiseLayer,
    InnerProductLayer,
    NetParam,
    Pooling,
    PoolingLayer,
    ReLULayer,
    ScaleLayer,
    msra,
)
from sparknet.caffe.schema import LayerParameter
from sparknet.caffe.zoo.ends import check_image, inputs, outputs

__all__ = ["resnet18", "resnet50"]

_LEAST = 3  # below it the pooling has no window


def resnet18(
    *, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, batch_size: int = 256
) -> NetSpec:
    """ResNet of 18 layers (arXiv 1512.03385, table 1, shortcuts B); 11,689,512 parameters.

    Its authors published no Caffe file; layers are named as in those of their deeper nets. The 9,600 running means
    and variances of BatchNorm come on top, with 20 factors.

    Args:
        input_shape: (channels, height, width), at least 3x3.
        classes: width of the last layer.
        batch_size: rows of an input.

    Raises:
        NetError: the input is not three-dimensional or too small.
    """
    check_image("resnet18", input_shape, least=_LEAST)
    layers = [*inputs(input_shape, batch_size), *_stem(bias=False)]
    bottom, before = "pool1", 64
    for stage, channels in enumerate((64, 128, 256, 512), start=2):
        for block in "ab":
            name = f"{stage}{block}"
            stride = 2 if block == "a" and stage > 2 else 1
            branches = [("2a", 3, channels, stride), ("2b", 3, channels, 1)]
            layers += _block(name, bottom, branches, shortcut=before != channels)
            bottom, before = f"res{name}", channels
    return NetParam("ResNet-18", *layers, *_top(bottom, classes))


def resnet50(
    *, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, batch_size: int = 256
) -> NetSpec:
    """ResNet of 50 layers (ResNet-50-deploy.prototxt of its authors); 25,557,096 parameters.

    These are 64 more than in torchvision: the published first convolution has biases. The 53,120 running means and
    variances of BatchNorm come on top, with 53 factors. As in the published file, a stage's stride is in its first
    1x1 convolution. The published file is for inference: here BatchNorm uses the batch's statistics in TRAIN, and
    weights start from He's filler, as in the paper. The batch size is the paper's.

    Args:
        input_shape: (channels, height, width), at least 3x3.
        classes: width of the last layer.
        batch_size: rows of an input.

    Raises:
        NetError: the input is not three-dimensional or too small.
    """
    check_image("resnet50", input_shape, least=_LEAST)
    layers = [*inputs(input_shape, batch_size), *_stem(bias=True)]
    bottom = "pool1"
    for stage, (channels, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=2):
        for place in range(depth):
            name = f"{stage}{chr(ord('a') + place)}"
            stride = 2 if place == 0 and stage > 2 else 1
            branches = [("2a", 1, channels, stride), ("2b", 3, channels, 1), ("2c", 1, 4 * channels, 1)]
            layers += _block(name, bottom, branches, shortcut=place == 0)
            bottom = f"res{name}"
    return NetParam("ResNet-50", *layers, *_top(bottom, classes))


def _stem(*, bias: bool) -> list[LayerParameter]:
    return [
        ConvolutionLayer(
            "conv1", ["data"], kernel=7, num_output=64, pad=3, stride=2, bias=bias, weight_filler=msra()
        ),
        *_normalised("conv1", "_conv1"),
        ReLULayer("conv1_relu", ["conv1"], in_place=True),
        PoolingLayer("pool1", ["conv1"], Pooling.Max, kernel=3, stride=2),
    ]


def _block(
    name: str, bottom: str, branches: Sequence[tuple[str, int, int, int]], *, shortcut: bool
) -> list[LayerParameter]:
    """What is learned plus what came in.

    Args:
        name: stage and letter, as in 3b.
        bottom: what comes in.
        branches: for each convolution its suffix, kernel, channels and stride.
        shortcut: whether what came in is brought to the new size by a convolution of its own.
    """
    layers: list[LayerParameter] = []
    came_in, stride = bottom, branches[0][3]
    # Shortcuts B of the paper: a projection only where the size changes.
    if shortcut:
        came_in = f"res{name}_branch1"
        layers += _convolution(name, "1", bottom, (1, branches[-1][2], stride))
    for suffix, *size in branches:
        made = f"res{name}_branch{suffix}"
        layers += _convolution(name, suffix, bottom, (size[0], size[1], size[2]))
        if suffix != branches[-1][0]:
            layers.append(ReLULayer(f"{made}_relu", [made], in_place=True))
        bottom = made
    return [
        *layers,
        EltwiseLayer(f"res{name}", [came_in, bottom]),
        ReLULayer(f"res{name}_relu", [f"res{name}"], in_place=True),
    ]


def _convolution(name: str, suffix: str, bottom: str, size: tuple[int, int, int]) -> list[LayerParameter]:
    kernel, channels, stride = size
    made = f"res{name}_branch{suffix}"
    return [
        ConvolutionLayer(
            # No bias: BatchNorm would take it off again, and Scale brings its own.
            made,
            [bottom],
            kernel,
            channels,
            pad=kernel // 2,
            stride=stride,
            bias=False,
            weight_filler=msra(),
        ),
        *_normalised(made, f"{name}_branch{suffix}"),
    ]


def _normalised(blob: str, suffix: str) -> list[LayerParameter]:
    return [
        # Two layers, since Caffe's BatchNorm learns nothing; they run as one kernel (module/fusion.py).
        BatchNormLayer(f"bn{suffix}", [blob], in_place=True),
        ScaleLayer(f"scale{suffix}", [blob], bias=True, in_place=True),
    ]


def _top(bottom: str, classes: int) -> list[LayerParameter]:
    return [
        # 7x7 in the published file, which is the whole image there: images of other sizes fit too
        PoolingLayer("pool5", [bottom], Pooling.Ave, global_pooling=True),
        InnerProductLayer(f"fc{classes}", ["pool5"], num_output=classes, weight_filler=msra()),
        *outputs(f"fc{classes}", top5=True),
    ]
