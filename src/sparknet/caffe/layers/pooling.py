"""Pooling and SPP (pooling_layer.cpp, pooling_layer.cu, spp_layer.cpp)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sparknet.caffe.layers.blob_limits import INT_MAX, check_int
from sparknet.caffe.layers.layer import Layer, Shape
from sparknet.caffe.schema import LayerParameter
from sparknet.caffe.schema.net_format_pb2 import PoolingParameter, SPPParameter
from sparknet.errors import NetError

__all__ = ["SPP", "WindowPooling"]

_LOWEST = -3.4028234663852886e38
"""-FLT_MAX: what MAX starts from, and so what a window outside the image gives."""


@dataclass(frozen=True, slots=True)
class _Side:
    """Windows along one axis: window i covers [i stride - pad, i stride - pad + kernel)."""

    size: int
    kernel: int
    stride: int
    pad: int
    count: int

    @property
    def padding(self) -> tuple[int, int]:
        """What to add in front and behind so that all windows are whole; negative where the last rows go unread."""
        return self.pad, (self.count - 1) * self.stride + self.kernel - self.pad - self.size

    @property
    def native(self) -> bool:
        """Whether torch's pooling with `ceil_mode` makes the same windows.

        It refuses a pad above kernel/2, and it drops a last window that starts behind the image.
        """
        return 2 * self.pad <= self.kernel and (self.count - 1) * self.stride < self.size + self.pad


Windows = tuple[_Side, _Side]
"""Along height and width."""


def _windows(shape: Shape, kernel: Shape, stride: Shape, pad: Shape, *, floor: bool = False) -> Windows:
    """Caffe's windows: rounded up unless `floor`; with any padding, none starts behind the image."""
    sides: list[_Side] = []
    for at, size in enumerate(shape[2:]):
        span = size + 2 * pad[at] - kernel[at]
        count = (span // stride[at] if floor else -(-span // stride[at])) + 1
        # pooling_layer.cpp clips both axes as soon as either is padded (if (pad_h_ || pad_w_)). Without any
        # padding a window may begin behind the image, where stride is larger than kernel: torch never makes that
        # one.
        if any(pad) and (count - 1) * stride[at] >= size + pad[at]:
            count -= 1
        sides.append(_Side(size, kernel[at], stride[at], pad[at], count))
    height, width = sides
    return height, width


def _max_pool(x: Tensor, windows: Windows) -> Tensor:
    return _max_pool_with_places(x, windows, places=False)[0]


def _max_pool_with_places(x: Tensor, windows: Windows, *, places: bool = True) -> tuple[Tensor, Tensor | None]:
    """Largest value of each window and, on request, where in the image plane it is; -1 for an empty window."""
    height, width = windows
    padded = x
    pad = (height.pad, width.pad)
    native = height.native and width.native
    if not native:
        # Half precision has no -FLT_MAX; its own lowest number loses against all others as well.
        lowest = max(_LOWEST, torch.finfo(x.dtype).min)
        padded, pad = functional.pad(x, (*width.padding, *height.padding), value=lowest), (0, 0)
    kernel, stride = (height.kernel, width.kernel), (height.stride, width.stride)
    ceil_mode = native and _rounds_up(windows)
    if not places:
        return functional.max_pool2d(padded, kernel, stride, pad, ceil_mode=ceil_mode), None
    top, at = functional.max_pool2d_with_indices(padded, kernel, stride, pad, ceil_mode=ceil_mode)
    # Places are counted in the plane that was padded; Caffe counts them in the bottom.
    if not native:
        columns = padded.shape[3]
        row = at.div(columns, rounding_mode="floor") - height.pad
        column = at.remainder(columns) - width.pad
        inside = (row >= 0) & (row < height.size) & (column >= 0) & (column < width.size)
        at = torch.where(inside, row * width.size + column, -1)
    return top, at.to(x.dtype)


def _average_pool(x: Tensor, windows: Windows) -> Tensor:
    """Sum of each window over its size cut at side + pad: padding counts, the overhang of rounding up does not."""
    height, width = windows
    kernel, stride = (height.kernel, width.kernel), (height.stride, width.stride)
    if height.native and width.native:
        return functional.avg_pool2d(x, kernel, stride, (height.pad, width.pad), ceil_mode=_rounds_up(windows))
    # torch divides by the whole kernel: multiplied back, and divided by what Caffe counts.
    padded = functional.pad(x, (*width.padding, *height.padding))
    areas = _lengths(height, x).unsqueeze(1) * _lengths(width, x)
    return functional.avg_pool2d(padded, kernel, stride) * (height.kernel * width.kernel / areas)


def _rounds_up(windows: Windows) -> bool:
    """Whether some last window hangs over the padding, which only rounding up makes."""
    return any(side.padding[1] > side.pad for side in windows)


def _lengths(side: _Side, like: Tensor) -> Tensor:
    """By what AVE divides along one axis; an empty window, which sums to 0, by 1 (Caffe: 0/0)."""
    starts = torch.arange(side.count, device=like.device, dtype=like.dtype) * side.stride - side.pad
    return ((starts + side.kernel).clamp(max=side.size + side.pad) - starts).clamp(min=1)


def _stochastic_pool(x: Tensor, windows: Windows, *, training: bool) -> Tensor:
    """A value drawn with probability x/Σx in training, else Σx²/Σx (Zeiler and Fergus 2013); x is not negative."""
    height, width = windows
    padded = functional.pad(x, (*width.padding, *height.padding))
    unfolded = padded.unfold(2, height.kernel, height.stride).unfold(3, width.kernel, width.stride)
    values = unfolded.flatten(4)  # [batch, channels, *counts, kernel]
    if not training:
        return values.square().sum(-1) / (values.sum(-1) + torch.finfo(torch.float32).tiny)
    # pooling_layer.cu, which alone has this method: the first value at which the running sum reaches a share of
    # it.
    running = values.detach().cumsum(-1)
    threshold = torch.rand_like(running[..., :1]) * running[..., -1:]
    place = (running < threshold).sum(-1, keepdim=True).clamp(max=values.shape[-1] - 1)
    return values.gather(-1, place).squeeze(-1)


class WindowPooling(Layer):
    """Largest, average or stochastically chosen value of each window of each image plane.

    Sizes become ⌈(size + 2 pad - kernel) / stride⌉ + 1 (`round_mode: FLOOR`: rounded down); with padding on either
    axis a last window that would start behind the image is dropped, without any it stays and is empty: MAX makes
    it -3.4028235e38 and AVE 0. A second top of MAX holds where in the plane each value was, as height index times
    width plus width index.
    """

    top_count = (1, 2)
    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.pooling_param
        (shape,) = bottoms
        _check_image(shape)
        self.method = given.pool
        self.floor = given.round_mode == PoolingParameter.FLOOR
        self.with_places = len(parameters.top) > 1
        if self.with_places and self.method != PoolingParameter.MAX:
            raise NetError(f"it has 2 tops with pool {_method(given.pool)}; only MAX tells where its values were")
        self.kernel = None if _is_global(given) else _pair(given, "kernel", "kernel_size", least=1)
        self.stride = _pair(given, "stride", "stride", least=1)
        self.pad = _pair(given, "pad", "pad", least=0)
        if self.kernel is not None:
            _check_pad(self.pad, self.kernel, stochastic=self.method == PoolingParameter.STOCHASTIC)
        for size, pad in zip(shape[2:], self.pad, strict=True):
            check_int(f"the bottom's size {size} with pad {pad} on both sides", size + 2 * pad)
        _check_windows(shape, self._windows(shape))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """[batch, channels, height, width] to [batch, channels, new height, new width], once or twice."""
        _check_image(tuple(x.shape))
        windows = self._windows(tuple(x.shape))
        if self.method == PoolingParameter.AVE:
            return _average_pool(x, windows)
        if self.method == PoolingParameter.STOCHASTIC:
            return _stochastic_pool(x, windows, training=self.training)
        if not self.with_places:
            return _max_pool(x, windows)
        top, places = _max_pool_with_places(x, windows)
        assert places is not None
        return top, places

    def _windows(self, shape: Shape) -> Windows:
        kernel = tuple(shape[2:]) if self.kernel is None else self.kernel
        return _windows(shape, kernel, self.stride, self.pad, floor=self.floor)


class SPP(Layer):
    """Spatial pyramid pooling: level l pools over 2^l by 2^l windows that cover the plane; all levels in one row.

    A pyramid of one level is not flattened, as in Caffe.
    """

    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.spp_param
        (shape,) = bottoms
        _check_image(shape)
        if given.pyramid_height < 1:
            raise NetError(f"pyramid_height is {given.pyramid_height}; it must be at least 1")
        self.levels = given.pyramid_height
        self.method = given.pool
        stochastic = self.method == SPPParameter.STOCHASTIC
        for level in range(self.levels):
            kernel, pad = _level_geometry(shape, level)
            try:
                _check_pad(pad, kernel, stochastic=stochastic)
            except NetError as error:
                raise NetError(
                    f"pyramid_height is {self.levels}; level {level} does not fit a bottom of {shape}: {error}"
                ) from error

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] to [batch, channels * windows of all levels]."""
        _check_image(tuple(x.shape))
        pooled = [self._pool(x, level) for level in range(self.levels)]
        return pooled[0] if self.levels == 1 else torch.cat([level.flatten(1) for level in pooled], 1)

    def _pool(self, x: Tensor, level: int) -> Tensor:
        kernel, pad = _level_geometry(tuple(x.shape), level)
        windows = _windows(tuple(x.shape), kernel, kernel, pad)
        pool: dict[int, Callable[[Tensor, Windows], Tensor]] = {
            SPPParameter.MAX: _max_pool,
            SPPParameter.AVE: _average_pool,
        }
        if self.method in pool:
            return pool[self.method](x, windows)
        return _stochastic_pool(x, windows, training=self.training)


def _level_geometry(shape: Shape, level: int) -> tuple[Shape, Shape]:
    """Kernel (and stride) and pad of a level: the smallest kernel with which 2^level windows cover each side."""
    bins = 2**level
    kernel = tuple(math.ceil(size / bins) for size in shape[2:])
    # spp_layer.cpp: what the windows reach too far is halved, and rounded up.
    pad = tuple((side * bins - size + 1) // 2 for side, size in zip(kernel, shape[2:], strict=True))
    return kernel, pad


def _check_image(shape: Shape) -> None:
    if len(shape) != 4:
        raise NetError(f"the bottom has shape {shape}; it must have four axes: batch, channels, height, width")


def _check_pad(pad: Shape, kernel: Shape, *, stochastic: bool) -> None:
    # pooling_layer.cpp looks at both rules only where there is padding.
    if any(pad) and stochastic:
        raise NetError(f"pad is {pad[0]}, {pad[1]} with pool STOCHASTIC; only MAX and AVE can pad: leave it out")
    if any(pad) and any(padding >= side for padding, side in zip(pad, kernel, strict=True)):
        raise NetError(f"pad is {pad[0]}, {pad[1]}; it must be smaller than the kernel, {kernel[0]}, {kernel[1]}")


def _check_windows(shape: Shape, windows: Windows) -> None:
    for side in windows:
        if side.count < 1:
            raise NetError(
                f"a kernel of {side.kernel} with stride {side.stride} and pad {side.pad} finds no window in a "
                f"bottom of shape {shape}; use a smaller kernel or global_pooling: true"
            )
    # what `_max_pool` and the others make where torch has no such windows
    padded = (*shape[:2], *(side.size + sum(side.padding) for side in windows))
    if not all(side.native for side in windows) and math.prod(padded) > INT_MAX:
        raise NetError(
            f"with stride {windows[0].stride}, {windows[1].stride} the windows reach so far behind a bottom of "
            f"shape {shape} that with padding it would be {padded}, above {INT_MAX} numbers; use a smaller stride"
        )


def _is_global(given: PoolingParameter) -> bool:
    if not given.global_pooling:
        return False
    for field in ("kernel_size", "kernel_h", "kernel_w"):
        if given.HasField(field):
            raise NetError(
                f"{field} is {getattr(given, field)} with global_pooling; the kernel is the plane: leave it out"
            )
    # pooling_layer.cpp: with global_pooling only pad = 0 and stride = 1 are allowed, so that nobody thinks they
    # count.
    strides, pads = _pair(given, "stride", "stride", least=1), _pair(given, "pad", "pad", least=0)
    if strides != (1, 1) or pads != (0, 0):
        raise NetError(
            f"stride is {strides} and pad {pads} with global_pooling; they must be 1 and 0: leave them out"
        )
    return True


def _pair(given: PoolingParameter, what: str, field: str, *, least: int) -> Shape:
    """Height and width of what is given once, or as a pair with `_h` and `_w`."""
    has_height, has_width = given.HasField(f"{what}_h"), given.HasField(f"{what}_w")
    if has_height != has_width:
        raise NetError(f"only one of {what}_h and {what}_w is given; give both, or {field}")
    if has_height and given.HasField(field):
        raise NetError(f"both {field} and {what}_h/{what}_w are given; keep one of them")
    height, width = (f"{what}_h", f"{what}_w") if has_height else (field, field)
    if what == "kernel" and not has_height and not given.HasField(field):
        raise NetError("there is no kernel_size; give it, or kernel_h and kernel_w, or global_pooling: true")
    sizes = getattr(given, height), getattr(given, width)
    check_int(height if height == width else f"{height}/{width}", *sizes)
    if min(sizes) < least:
        raise NetError(f"{height if sizes[0] < least else width} is {min(sizes)}; it must be at least {least}")
    return sizes


def _method(value: int) -> str:
    return PoolingParameter.PoolMethod.Name(value)
