"""Convolution, Deconvolution and Im2col, over any number of leading axes (base_conv_layer, im2col_layer.cpp)."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from sparknet.caffe.layers.axes import canonical_axis
from sparknet.caffe.layers.blob_limits import check_int
from sparknet.caffe.layers.fillers import new_blob
from sparknet.caffe.layers.layer import Layer, Shape
from sparknet.caffe.schema import LayerParameter
from sparknet.caffe.schema.net_format_pb2 import ConvolutionParameter
from sparknet.errors import NetError

__all__ = ["Convolution", "Deconvolution", "Im2col"]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_DECONVOLUTIONS: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


class _Filters(Layer):
    """What Convolution and Deconvolution share: geometry, blobs, and several bottoms under the same filters."""

    bottom_count = (1, None)
    top_count = (1, None)
    needs_output = False
    deconvolves: ClassVar[bool]

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given, shape = parameters.convolution_param, bottoms[0]
        if len(parameters.top) != len(bottoms):
            raise NetError(f"it has {len(bottoms)} bottoms and {len(parameters.top)} tops; there must be as many")
        # base_conv_layer.cpp: one geometry is worked out, for all bottoms.
        for other in bottoms[1:]:
            if other != shape:
                raise NetError(f"its bottoms have shapes {shape} and {other}; they must have one shape")
        self.axis = canonical_axis(given.axis, shape)
        self.spatial = len(shape) - self.axis - 1
        # Caffe has a general kernel for any number of axes (im2col_nd); torch has kernels for three.
        if self.spatial > 3:
            raise NetError(
                f"{self.spatial} spatial axes follow axis {given.axis} of {shape}; at most 3 are supported"
            )
        self.kernel = _sizes(given, "kernel", self.spatial, default=None, least=1)
        self.stride = _sizes(given, "stride", self.spatial, default=1, least=1)
        self.pad = _sizes(given, "pad", self.spatial, default=0, least=0)
        self.dilation = _sizes(given, "dilation", self.spatial, default=1, least=1)
        self.group = given.group
        # A Deconvolution makes its bottom larger: any size has room.
        if not self.deconvolves:
            _check_room(shape[self.axis + 1 :], self.kernel, self.pad, self.dilation)
        self._make_blobs(given, shape[self.axis])

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        """Each [*outer, channels, *sizes] to [*outer, num_output, *new sizes]."""
        return tuple(self._filter(bottom) for bottom in bottoms)

    def _make_blobs(self, given: ConvolutionParameter, channels: int) -> None:
        outputs, group = given.num_output, given.group
        if outputs < 1:
            raise NetError(f"num_output is {outputs}; it must be at least 1: set convolution_param.num_output")
        if group < 1 or channels % group or outputs % group:
            raise NetError(
                f"group is {group}; it must divide the bottom's {channels} channels and num_output {outputs}"
            )
        # base_conv_layer.cpp: a Deconvolution runs the convolution backwards (reverse_dimensions), so that the
        # two numbers of channels change places in the blob, while the bias stays one number for each output.
        inner = (channels, outputs // group) if self.deconvolves else (outputs, channels // group)
        self.weight = nn.Parameter(new_blob((*inner, *self.kernel), given.weight_filler))
        self.bias = nn.Parameter(new_blob((outputs,), given.bias_filler)) if given.bias_term else None
        self.blob_names = ("weight", "bias") if given.bias_term else ("weight",)

    def _filter(self, x: Tensor) -> Tensor:
        # Caffe counts all axes before the channels as one batch: num_ = count(0, channel_axis_).
        outer, rest = x.shape[: self.axis], x.shape[self.axis :]
        weight = self.weight
        if self.axis != 1:
            x = x.reshape(math.prod(outer), *rest)
        if not self.spatial:  # an axis of 1 stands in
            x, weight = x.unsqueeze(-1), weight.unsqueeze(-1)
        kernels = _DECONVOLUTIONS if self.deconvolves else _CONVOLUTIONS
        # Without a spatial axis the tuples are empty, and the axis of 1 that stands in has the defaults.
        y = kernels[max(self.spatial, 1)](
            x,
            weight,
            self.bias,
            stride=self.stride or 1,
            padding=self.pad or 0,
            dilation=self.dilation or 1,
            groups=self.group,
        )
        if not self.spatial:
            y = y.squeeze(-1)
        return y if self.axis == 1 else y.reshape(*outer, *y.shape[1:])

    def multiply_adds(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        """Positions of the filters times weights."""
        # A Deconvolution lays its filters over each place of the bottom, a Convolution over each of the top.
        places = bottoms if self.deconvolves else tops
        return sum(
            math.prod(shape[: self.axis]) * math.prod(shape[self.axis + 1 :]) * self.weight.numel()
            for shape in places
        )


class Convolution(_Filters):
    """Cross-correlation with filters [num_output, channels/group, *kernel], plus b.

    Each size becomes ⌊(size + 2 pad - dilation (kernel - 1) - 1) / stride⌋ + 1. `engine` and `force_nd_im2col` do
    not change what is computed, and are not looked at.
    """

    deconvolves = False


class Deconvolution(_Filters):
    """The transpose of Convolution, with filters [channels, num_output/group, *kernel], plus b.

    Each size becomes stride (size - 1) + dilation (kernel - 1) + 1 - 2 pad.
    """

    deconvolves = True


class Im2col(Layer):
    """Each window of the bottom as a column: what a Convolution multiplies its filters by.

    Over any number of spatial axes; what lies in the padding is 0. Of a column, a channel's numbers are together.
    """

    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given, (shape,) = parameters.convolution_param, bottoms
        self.axis = canonical_axis(given.axis, shape)
        self.spatial = len(shape) - self.axis - 1
        if not self.spatial:
            raise NetError(f"axis is {given.axis}; a bottom of shape {shape} has no axes behind it, and needs one")
        self.kernel = _sizes(given, "kernel", self.spatial, default=None, least=1)
        self.stride = _sizes(given, "stride", self.spatial, default=1, least=1)
        self.pad = _sizes(given, "pad", self.spatial, default=0, least=0)
        self.dilation = _sizes(given, "dilation", self.spatial, default=1, least=1)
        _check_room(shape[self.axis + 1 :], self.kernel, self.pad, self.dilation)

    def forward(self, x: Tensor) -> Tensor:
        """[*outer, channels, *sizes] to [*outer, channels * window, *places]."""
        outer, channels = x.shape[: self.axis], x.shape[self.axis]
        # functional.pad begins with the last axis.
        windows = functional.pad(x, [pad for pad in reversed(self.pad) for _ in range(2)]) if any(self.pad) else x
        for place, (kernel, stride, dilation) in enumerate(
            zip(self.kernel, self.stride, self.dilation, strict=True), self.axis + 1
        ):
            # Each window becomes an axis at the end, as wide as the kernel spans.
            windows = windows.unfold(place, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        front, places = range(self.axis + 1), range(self.axis + 1, x.dim())
        columns = windows.permute(*front, *range(x.dim(), windows.dim()), *places)
        return columns.reshape(*outer, channels * math.prod(self.kernel), *columns.shape[-self.spatial :])


def _check_room(sizes: Shape, kernels: Shape, pads: Shape, dilations: Shape) -> None:
    for size, kernel, pad, dilation in zip(sizes, kernels, pads, dilations, strict=True):
        extent = dilation * (kernel - 1) + 1
        check_int(f"the bottom's size {size} with pad {pad} on both sides", size + 2 * pad)
        if size + 2 * pad < extent:
            raise NetError(
                f"a kernel that spans {extent} does not fit into {size} with pad {pad}; "
                "use a smaller kernel or a larger bottom"
            )


def _sizes(
    given: ConvolutionParameter,
    what: Literal["kernel", "stride", "pad", "dilation"],
    axes: int,
    *,
    default: int | None,
    least: int,
) -> tuple[int, ...]:
    """One number for each spatial axis, from the repeated field or from the pair with `_h` and `_w`."""
    field = "kernel_size" if what == "kernel" else what
    listed: tuple[int, ...] = tuple(getattr(given, field))
    # caffe.proto has no dilation_h and dilation_w.
    pair = what != "dilation" and (given.HasField(f"{what}_h") or given.HasField(f"{what}_w"))
    if pair:
        if listed:
            raise NetError(f"both {field} and {what}_h/{what}_w are given; keep one of them")
        if axes != 2:
            raise NetError(f"{what}_h and {what}_w are for 2 spatial axes; the bottom has {axes}: use {field}")
        listed = (getattr(given, f"{what}_h"), getattr(given, f"{what}_w"))
    if not listed and default is not None:
        listed = (default,)
    if len(listed) not in (1, axes):
        raise NetError(
            f"{field} is given {len(listed)} times; give it once, or once for each of {axes} spatial axes"
        )
    sizes = listed * axes if len(listed) == 1 else listed
    named = f"{what}_h/{what}_w" if pair else field
    check_int(named, *sizes)
    if any(size < least for size in sizes):
        raise NetError(f"{named} is {', '.join(map(str, sizes))}; each must be at least {least}")
    return sizes
