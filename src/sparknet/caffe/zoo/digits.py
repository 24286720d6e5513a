"""A small net for the first run, as a plain torch module."""

from torch import nn

from sparknet.caffe.zoo.ends import check_image
from sparknet.errors import NetError

__all__ = ["digits_cnn"]


def digits_cnn(*, input_shape: tuple[int, ...], classes: int, width: int = 24) -> nn.Module:
    """A small convolutional net with BatchNorm for scikit-learn's 1x8x8 digits; 33,490 parameters there.

    Three convolutions of 3x3, each followed by BatchNorm, so that the input's scale hardly matters. The last layer
    starts near 0, so that the first loss is ln(classes).

    Args:
        input_shape: (channels, height, width), at least 4x4.
        classes: width of the last layer.
        width: channels of the first convolution; the others have twice as many.

    Raises:
        NetError: the input is not three-dimensional or too small, or `width` is below 1.
    """
    check_image("digits_cnn", input_shape, least=4)
    channels, height, columns = input_shape
    if width < 1:
        raise NetError(f"digits_cnn: width is {width}; it must be at least 1: set net.arguments.width")
    net = nn.Sequential()
    for index, (before, after) in enumerate(
        [(channels, width), (width, 2 * width), (2 * width, 2 * width)], start=1
    ):
        # no bias: BatchNorm would take it off again
        net.add_module(f"conv{index}", nn.Conv2d(before, after, 3, padding=1, bias=False))
        net.add_module(f"norm{index}", nn.BatchNorm2d(after))
        net.add_module(f"relu{index}", nn.ReLU())
        if index > 1:
            net.add_module(f"pool{index}", nn.MaxPool2d(2, 2))
    net.add_module("flatten", nn.Flatten())
    net.add_module("ip1", nn.Linear(2 * width * (height // 4) * (columns // 4), classes))
    return _he_start(net)


def _he_start(net: nn.Sequential) -> nn.Sequential:
    # Of n inputs, torch's own start has the variance 1/(3 n); He's has 2/n, which ReLU hands on undiminished.
    learned = [layer for layer in net if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in learned[:-1]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        _zero_bias(layer)
    nn.init.normal_(learned[-1].weight, std=0.01)
    _zero_bias(learned[-1])
    return net


def _zero_bias(layer: nn.Conv2d | nn.Linear) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
