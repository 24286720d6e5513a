"""Layers that map each value on its own."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparknet.caffe.layers.fillers import new_blob
from sparknet.caffe.layers.layer import Layer, Shape
from sparknet.caffe.schema import FillerParameter, LayerParameter
from sparknet.errors import NetError

__all__ = [
    "BNLL",
    "ELU",
    "AbsVal",
    "Clip",
    "Dropout",
    "Exp",
    "Log",
    "PReLU",
    "Power",
    "ReLU",
    "Sigmoid",
    "Swish",
    "TanH",
    "Threshold",
]


class ReLU(Layer):
    """max(x, 0) + negative_slope min(x, 0); the slope at 0 is negative_slope."""

    caffe_in_place = "right"
    works_in_place = True

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        self.negative_slope = parameters.relu_param.negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to the same."""
        if not self.negative_slope:
            return functional.relu(x, self.in_place)
        # from its result alone torch can tell the sign of x only where the slope is positive
        return functional.leaky_relu(x, self.negative_slope, self.in_place and self.negative_slope > 0)


class PReLU(Layer):
    """max(x, 0) + a min(x, 0) with one a for each channel, or for all with `channel_shared` (He et al. 2015)."""

    caffe_in_place = "right"
    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.prelu_param
        (shape,) = bottoms
        # prelu_layer.cpp: the slopes go by axis 1, also for a bottom of two axes.
        if len(shape) < 2:
            raise NetError(f"the bottom has shape {shape}; it must have at least two axes: batch and channels")
        # prelu_layer.cpp: 0.25 where the file gives no filler, as in the paper.
        filler = given.filler if given.HasField("filler") else FillerParameter(type="constant", value=0.25)
        self.weight = nn.Parameter(new_blob(() if given.channel_shared else (shape[1],), filler))
        self.blob_names = ("weight",)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, *any] to the same."""
        return functional.prelu(x, self.weight)


class ELU(Layer):
    """x where it is positive, else alpha (e^x - 1) (Clevert et al. 2016)."""

    caffe_in_place = "right"
    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        self.alpha = parameters.elu_param.alpha

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to the same."""
        return functional.elu(x, self.alpha)


class Sigmoid(Layer):
    """1 / (1 + e^-x)."""

    caffe_in_place = "right"

    # `needs_output` stays true, here and in TanH and Exp: torch takes the gradient from the result, y (1 - y).

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to the same."""
        return x.sigmoid()


class TanH(Layer):
    """Hyperbolic tangent."""

    caffe_in_place = "right"

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to the same."""
        return x.tanh()


class AbsVal(Layer):
    """|x|; its slope at 0 is 0."""

    caffe_in_place = "refused"

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to the same."""
        return x.abs()


class BNLL(Layer):
    """log(1 + e^x)."""

    caffe_in_place = "gradient"

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to the same."""
        return functional.softplus(x, threshold=50)  # bnll_layer.cpp: above 50 the slope is 1


class Power(Layer):
    """(shift + scale x)^power; 1 everywhere where power is 0."""

    caffe_in_place = "gradient"

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.power_param
        self.power, self.scale, self.shift = given.power, given.scale, given.shift

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to the same."""
        if self.power * self.scale == 0:
            # power_layer.cpp does not look at the bottom then, which may hold what no power can be taken of
            return torch.full_like(x, 1.0 if self.power == 0 else _power(self.shift, self.power))
        base = _affine(x, self.scale, self.shift)
        return base if self.power == 1 else base.pow(self.power)


class Exp(Layer):
    """base^(shift + scale x); base -1 stands for e."""

    caffe_in_place = "right"

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.exp_param
        log = _log_of_base(given.base)
        # exp_layer.cpp multiplies by base^shift behind the exponential: one exponent spares that pass over
        # memory.
        self.scale, self.shift = given.scale * log, given.shift * log

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to the same."""
        return _affine(x, self.scale, self.shift).exp()


class Log(Layer):
    """Logarithm of shift + scale x to the base; base -1 stands for e."""

    caffe_in_place = "gradient"

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.log_param
        self.scale, self.shift = given.scale, given.shift
        self.log_of_base = _log_of_base(given.base)
        if self.log_of_base == 0:
            raise NetError("base is 1, to which there are no logarithms; it must be above 0 and not 1, or -1 for e")

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to the same."""
        log = _affine(x, self.scale, self.shift).log()
        return log if self.log_of_base == 1 else log / self.log_of_base


class Threshold(Layer):
    """1 where x is above the threshold, else 0; no gradient."""

    caffe_in_place = "right"

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        self.threshold = parameters.threshold_param.threshold

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to the same."""
        return (x > self.threshold).to(x.dtype)


class Clip(Layer):
    """X, but not below min nor above max; the slope is 1 from min to max, and 0 outside."""

    caffe_in_place = "gradient"

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.clip_param
        if not (given.HasField("min") and given.HasField("max")) or given.min > given.max:
            raise NetError(f"min is {given.min:g} and max {given.max:g}; give both, min not above max")
        self.low, self.high = given.min, given.max

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to the same."""
        # clip_layer.cpp lets the gradient through at min and max themselves, and so does this kernel.
        return x.clamp(self.low, self.high)


class Swish(Layer):
    """X / (1 + e^(-beta x))."""

    caffe_in_place = "right"

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        self.beta = parameters.swish_param.beta

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to the same."""
        # silu is one pass over memory, but knows no beta.
        return functional.silu(x) if self.beta == 1 else x * (x * self.beta).sigmoid()


class Dropout(Layer):
    """In training x / (1 - dropout_ratio), or 0 with probability dropout_ratio; else x."""

    caffe_in_place = "right"
    works_in_place = True

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        # dropout_layer.cpp checks this in debug builds alone; in others a ratio of 1 divides by 0.
        self.ratio = parameters.dropout_param.dropout_ratio
        if not 0 <= self.ratio < 1:
            raise NetError(f"dropout_ratio is {self.ratio:g}; it must be at least 0 and below 1")

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to the same."""
        return functional.dropout(x, self.ratio, self.training, self.in_place)


def _affine(x: Tensor, scale: float, shift: float) -> Tensor:
    scaled = x if scale == 1 else x * scale
    return scaled if shift == 0 else scaled + shift


def _power(base: float, power: float) -> float:
    """As C's pow, which does not raise."""
    # on the CPU, also where torch's default device is one without numbers
    return float(torch.tensor(base, dtype=torch.float64, device="cpu").pow(power))


def _log_of_base(base: float) -> float:
    if base == -1:
        return 1.0
    if base <= 0:
        raise NetError(f"base is {base:g}; it must be above 0, or -1 for e")
    return math.log(base)
