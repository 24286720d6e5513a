"""LRN, BatchNorm, Scale, Bias and MVN."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparknet.caffe.layers.axes import canonical_axis
from sparknet.caffe.layers.blob_limits import check_int
from sparknet.caffe.layers.fillers import new_blob
from sparknet.caffe.layers.layer import Layer, Shape
from sparknet.caffe.schema import FillerParameter, LayerParameter
from sparknet.caffe.schema.net_format_pb2 import LRNParameter
from sparknet.errors import NetError

__all__ = ["LRN", "MVN", "BatchNorm", "Bias", "Scale"]


class LRN(Layer):
    """x (k + α/n Σx²)^-β over n neighbouring channels, or x (1 + α/n² Σx²)^-β over n by n neighbours in the plane.

    Neighbours outside count as zeros.
    """

    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.lrn_param
        (shape,) = bottoms
        if len(shape) != 4:
            raise NetError(f"the bottom has shape {shape}; it must have four axes: batch, channels, height, width")
        # lrn_layer.cpp: the window has a middle, which is the number that is divided.
        if given.local_size % 2 == 0:
            raise NetError(f"local_size is {given.local_size}; it must be odd")
        check_int("local_size", given.local_size)
        self.size = given.local_size
        self.alpha, self.beta, self.k = given.alpha, given.beta, given.k
        self.within = given.norm_region == LRNParameter.WITHIN_CHANNEL

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] to the same."""
        if not self.within:
            # lrn_layer.cpp divides alpha by the number of neighbours; Krizhevsky et al. 2012, section 3.3, do
            # not.
            return _AcrossChannels.apply(x, self.size, self.alpha / self.size, self.beta, self.k)
        # There this is a net of its own, of Pooling AVE with padding and of Power with shift 1: so the zeros
        # outside count in the mean, and k is not read.
        average = functional.avg_pool2d(x.square(), self.size, 1, self.size // 2)
        return x * _power(average * self.alpha + 1, -self.beta)


class _AcrossChannels(torch.autograd.Function):
    """y = x d^-β with d = k + a Σx², and its gradient g d^-β - 2aβ x Σ(g y / d), as in lrn_layer.cpp."""

    # Written out: 16x96x55x55 forward and backward take 21 ms on one core, torch's local_response_norm 115, and
    # the same steps under autograd twice as long as these. CaffeNet as a whole gains 5 %.

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        divisor = _sum_over_channels(x.square(), size).mul_(alpha).add_(k)
        power = _power(divisor, -beta)
        ctx.save_for_backward(x, divisor, power)
        ctx.size, ctx.factor = size, 2 * alpha * beta
        return x * power

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = grad_outputs
        x, divisor, power = ctx.saved_tensors
        with torch.no_grad():  # a second derivative is refused, rather than wrong
            direct = gradient * power
            through = _sum_over_channels((direct * x).div_(divisor), ctx.size)
            return direct.sub_(through.mul_(x), alpha=ctx.factor), None, None, None, None


def _sum_over_channels(x: Tensor, size: int) -> Tensor:
    """Of each channel and its size // 2 neighbours on either side."""
    # Slices of the same memory shifted against each other: no padded copy, and no pass for what lies outside.
    sums = x.clone()
    for distance in range(1, min(size // 2, x.shape[1] - 1) + 1):
        sums[:, distance:] += x[:, :-distance]
        sums[:, :-distance] += x[:, distance:]
    return sums


def _power(x: Tensor, exponent: float) -> Tensor:
    if exponent == -0.75:  # Caffe's default, and that of every published net
        root = x.rsqrt()
        return root.sqrt().mul_(root) if not x.requires_grad else root * root.sqrt()
    return x.pow(exponent)


class BatchNorm(Layer):
    """(x - E[x]) / √(Var[x] + eps) for each channel; no scale and no shift, which a Scale layer adds.

    The blobs are running sums: each pass in training multiplies them by `moving_average_fraction` and adds the
    batch's mean, its variance (times m/(m - 1), of m values a channel) and 1. What the sums stand for is their
    quotient by the third (batch_norm_layer.cpp).
    """

    caffe_in_place = "right"
    needs_output = False
    mean: Tensor
    variance: Tensor
    factor: Tensor

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.batch_norm_param
        (shape,) = bottoms
        # batch_norm_layer.cpp refuses it too: a solver that moved the sums would undo what each pass adds to
        # them.
        for place, param in enumerate(parameters.param):
            if param.lr_mult != 0:
                found = (
                    f"lr_mult {param.lr_mult:g}" if param.HasField("lr_mult") else "no lr_mult, which stands for 1"
                )
                raise NetError(f"param {place} has {found}; no solver moves the statistics: set it to 0")
        self.fraction, self.eps = given.moving_average_fraction, given.eps
        self.use_global_stats = given.use_global_stats if given.HasField("use_global_stats") else None
        channels = shape[1] if len(shape) > 1 else 1
        # Buffers, no parameters, so that no optimiser of torch finds them.
        self.register_buffer("mean", new_blob((channels,)))
        self.register_buffer("variance", new_blob((channels,)))
        self.register_buffer("factor", new_blob((1,)))
        self.blob_names = ("mean", "variance", "factor")

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """[batch, channels, *any] to the same; a bottom of one axis is one channel.

        `weight` and `bias`, [channels], are those of a Scale layer whose work is done along with this one's.
        """
        columns = x if x.dim() > 1 else x.unsqueeze(1)
        # batch_norm_layer.cpp: the phase decides where the file is silent, and the file where it is not.
        frozen = not self.training if self.use_global_stats is None else self.use_global_stats
        normalised = (self._by_running if frozen else self._by_batch)(columns, weight, bias)
        return normalised if x.dim() > 1 else normalised.squeeze(1)

    def _by_running(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        # A net that has not trained has the factor 0: Caffe then takes mean and variance as 0, not as 0/0.
        scale = torch.where(self.factor == 0, 0, 1 / self.factor)
        mean, variance = self.mean * scale, self.variance * scale
        return functional.batch_norm(x, mean, variance, weight, bias, eps=self.eps)

    def _by_batch(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if x.is_meta:
            return torch.empty_like(x)  # what stands for the kernel there divides by m - 1, even where that is 0
        # with momentum 1 the kernel leaves the batch's own statistics here, its variance already times m/(m - 1)
        mean, variance = torch.zeros_like(self.mean), torch.zeros_like(self.variance)
        cudnn = torch.backends.cudnn.enabled
        normal = torch.batch_norm(x, weight, bias, mean, variance, True, 1.0, self.eps, cudnn)
        with torch.no_grad():
            if x.numel() == x.shape[1]:
                variance.zero_()  # of one value: the kernel made it 0/0
            self.mean.mul_(self.fraction).add_(mean)
            self.variance.mul_(self.fraction).add_(variance)
            self.factor.mul_(self.fraction).add_(1)
        return normal


class _Broadcast(Layer):
    """What Scale and Bias share: a blob, or a second bottom, over some axes of the first bottom."""

    bottom_count = (1, 2)
    needs_output = False
    start: int
    """First axis of the first bottom that the blob lies over."""
    trailing: int
    """Axes of the first bottom behind those of the blob."""

    def _take_axes(self, axis: int, num_axes: int, bottoms: Sequence[Shape]) -> Shape:
        """Shape of the blob or of the second bottom: that of the first bottom's axes from `axis` on."""
        shape = bottoms[0]
        if num_axes < -1:
            raise NetError(f"num_axes is {num_axes}; it must be at least 0, or -1 for all from axis {axis} on")
        if len(bottoms) == 1:
            start = canonical_axis(axis, shape)
            found = shape[start:] if num_axes == -1 else shape[start : start + num_axes]
            if len(found) < num_axes:
                raise NetError(f"axis {axis} and num_axes {num_axes} reach past the bottom's shape {shape}")
        else:
            found = bottoms[1]
            # scale_layer.cpp: a second bottom without axes is a factor for everything, wherever `axis` points.
            start = canonical_axis(axis, shape) if found else 0
            if shape[start : start + len(found)] != found:
                raise NetError(
                    f"the second bottom has shape {found}; from axis {axis} on the first has {shape[start:]}, "
                    "which must begin with it: set axis"
                )
        self.start, self.trailing = start, len(shape) - start - len(found) if found else 0
        return found

    def _spread(self, blob: Tensor, x: Tensor) -> Tensor:
        """The blob with an axis of 1 for each trailing axis of the first bottom, `x`."""
        if x.shape[self.start : self.start + blob.dim()] != blob.shape:
            raise NetError(
                f"what is laid over the bottom of shape {tuple(x.shape)} from axis {self.start} on has shape "
                f"{tuple(blob.shape)}; the sizes there must be equal"
            )
        return blob.reshape((*blob.shape, *(1,) * self.trailing))


class Scale(_Broadcast):
    """x times a blob of the shape of some of its axes, plus perhaps another; with two bottoms times the second."""

    caffe_in_place = "right"
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.scale_param
        shape = self._take_axes(given.axis, given.num_axes, bottoms)
        # scale_layer.cpp: without a filler the layer starts as the identity; Caffe's general default would be 0.
        filler = given.filler if given.HasField("filler") else FillerParameter(type="constant", value=1)
        self.weight = nn.Parameter(new_blob(shape, filler)) if len(bottoms) == 1 else None
        self.bias = nn.Parameter(new_blob(shape, given.bias_filler)) if given.bias_term else None
        # Over axis 1 and no other: what a normalisation's own weight lies over.
        self.is_per_channel = len(bottoms) == 1 and len(shape) == 1 and self.trailing == len(bottoms[0]) - 2
        names = ("weight", self.weight), ("bias", self.bias)
        self.blob_names = tuple(name for name, blob in names if blob is not None)

    def forward(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """[*any] to the same."""
        weight = self.weight if factors is None else factors
        assert weight is not None
        if self.is_per_channel:
            # as a normalisation of mean 0 and variance 1: half the time, as its gradients take one pass over x
            zeros, ones = torch.zeros_like(weight), torch.ones_like(weight)
            return torch.batch_norm(x, weight, self.bias, zeros, ones, False, 0.0, 0.0, False)
        scaled = x * self._spread(weight, x)
        return scaled if self.bias is None else scaled + self._spread(self.bias, x)


class Bias(_Broadcast):
    """x plus a blob of the shape of some of its axes; with two bottoms plus the second."""

    caffe_in_place = "right"
    bias: nn.Parameter | None

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.bias_param
        shape = self._take_axes(given.axis, given.num_axes, bottoms)
        self.bias = nn.Parameter(new_blob(shape, given.filler)) if len(bottoms) == 1 else None
        self.blob_names = ("bias",) if len(bottoms) == 1 else ()

    def forward(self, x: Tensor, summands: Tensor | None = None) -> Tensor:
        """[*any] to the same."""
        bias = self.bias if summands is None else summands
        assert bias is not None
        return x + self._spread(bias, x)


class MVN(Layer):
    """(x - E[x]) / (√Var[x] + eps) of each image plane, or of each image with `across_channels`.

    The gradient is Caffe's (mvn_layer.cpp), (g - E[g] - y E[g y]) / (√Var[x] + eps), which is that of the formula
    above but for the last term, where eps does not belong.
    """

    caffe_in_place = "gradient"
    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.mvn_param
        (shape,) = bottoms
        # mvn_layer.cpp asks for num, channels, height and width, which no blob of more axes has.
        if len(shape) > 4:
            raise NetError(f"the bottom has shape {shape}; it must have at most four axes")
        self.eps = given.eps
        self.normalises_variance = given.normalize_variance
        self.axes = (1, 2, 3) if given.across_channels else (2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] to the same; missing axes are added behind, as Caffe does."""
        x = x.reshape(*x.shape, *(1,) * (4 - x.dim()))
        centred = x - x.mean(self.axes, keepdim=True)
        if not self.normalises_variance:
            return centred
        variance = centred.square().mean(self.axes, keepdim=True)
        # mvn_layer.cpp adds eps to the deviation, where BatchNorm adds it to the variance.
        deviation = variance.detach().sqrt() + self.eps
        # worth nothing, and its slope is that of the deviation with eps inside: finite on a flat plane too
        slope = (variance - variance.detach()) / (2 * deviation)
        return centred / (deviation + slope)
