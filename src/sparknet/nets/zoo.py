"""The zoo: nets that are found by a bare name, each a plain function returning an `nn.Module`.

Every entry takes `input_shape`, one row without the batch axis as (channels, height, width), and `classes`.
The module maps images: float32 [batch, channels, height, width] to logits: float32 [batch, classes]. Children
carry the names of Caffe's layers, so that `state_dict()` reads `conv1.weight`, `ip2.bias`.
"""

from torch import nn

from sparknet.errors import NetError

__all__ = ["cifar10_quick", "digits_cnn", "lenet"]


def lenet(*, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """LeNet as Caffe ships it (examples/mnist/lenet_train_test.prototxt); 431,080 parameters.

    That count is for 1x28x28 and 10 classes. Weights start from Caffe's own filler,
    Xavier U(±√(3 / fan_in)), biases from 0.

    Args:
        input_shape: (channels, height, width), at least 14x14.
        classes: width of the last layer.

    Raises:
        NetError: the input is not three-dimensional or too small.
    """
    channels, height, width = _image_shape("lenet", input_shape, least=14)
    # Caffe rounds the size of a pooled map up, hence ceil_mode; for 28x28 both ways agree.
    rows, columns = (_ceil_pool(_ceil_pool(size - 4, 2) - 4, 2) for size in (height, width))
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(channels, 20, 5))
    net.add_module("pool1", nn.MaxPool2d(2, 2, ceil_mode=True))
    net.add_module("conv2", nn.Conv2d(20, 50, 5))
    net.add_module("pool2", nn.MaxPool2d(2, 2, ceil_mode=True))
    net.add_module("flatten", nn.Flatten())
    net.add_module("ip1", nn.Linear(50 * rows * columns, 500))
    net.add_module("relu1", nn.ReLU())
    net.add_module("ip2", nn.Linear(500, classes))
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            # torch's kaiming with gain 1 is Caffe's xavier, which, unlike torch's, looks at the fan-in alone
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
            _zero_bias(layer)
    return net


def cifar10_quick(*, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Caffe's CIFAR-10 quick net (examples/cifar10/cifar10_quick_train_test.prototxt); 145,578 parameters.

    That count is for 3x32x32 and 10 classes. Weights start from He's normal filler (arXiv 1502.01852, eq. 10)
    and not from Caffe's Gaussians, whose 0.0001 on the first layer suits bytes of ±128 and stalls for the
    first hundreds of steps: scale the input to about unit variance. The last layer starts near 0, so that the
    first loss is ln(classes).

    Args:
        input_shape: (channels, height, width), at least 8x8.
        classes: width of the last layer.

    Raises:
        NetError: the input is not three-dimensional or too small.
    """
    channels, height, width = _image_shape("cifar10_quick", input_shape, least=8)
    rows, columns = height, width
    for _ in range(3):
        rows, columns = _ceil_pool(rows, 3), _ceil_pool(columns, 3)
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(channels, 32, 5, padding=2))
    net.add_module("pool1", nn.MaxPool2d(3, 2, ceil_mode=True))
    net.add_module("relu1", nn.ReLU())
    net.add_module("conv2", nn.Conv2d(32, 32, 5, padding=2))
    net.add_module("relu2", nn.ReLU())
    # A window over the edge is divided by the cells it covers, in Caffe as in torch with ceil_mode.
    net.add_module("pool2", nn.AvgPool2d(3, 2, ceil_mode=True))
    net.add_module("conv3", nn.Conv2d(32, 64, 5, padding=2))
    net.add_module("relu3", nn.ReLU())
    net.add_module("pool3", nn.AvgPool2d(3, 2, ceil_mode=True))
    net.add_module("flatten", nn.Flatten())
    net.add_module("ip1", nn.Linear(64 * rows * columns, 64))
    net.add_module("ip2", nn.Linear(64, classes))
    return _he_start(net)


def digits_cnn(*, input_shape: tuple[int, ...], classes: int, width: int = 24) -> nn.Module:
    """A small convolutional net with BatchNorm for scikit-learn's 1x8x8 digits; 33,490 parameters there.

    Three convolutions of 3x3, each followed by BatchNorm, so that the input's scale hardly matters.

    Args:
        input_shape: (channels, height, width), at least 4x4.
        classes: width of the last layer.
        width: channels of the first convolution; the others have twice as many.

    Raises:
        NetError: the input is not three-dimensional or too small, or `width` is below 1.
    """
    channels, height, columns = _image_shape("digits_cnn", input_shape, least=4)
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


def _image_shape(net: str, shape: tuple[int, ...], *, least: int) -> tuple[int, int, int]:
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
    return channels, height, width


def _ceil_pool(size: int, kernel: int) -> int:
    """Size after Caffe's pooling with stride 2 and no padding: ceil((size - kernel) / 2) + 1."""
    return -(-(size - kernel) // 2) + 1


def _he_start(net: nn.Sequential) -> nn.Sequential:
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
