"""Layers without blobs of their own: pooling, activations, and what joins, cuts and reshapes."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, Unpack

from sparknet.caffe.dsl.message import Blobs, Options, Size, along_axes, make
from sparknet.caffe.schema import LayerParameter
from sparknet.caffe.schema.net_format_pb2 import PoolingParameter

__all__ = [
    "ConcatLayer",
    "DropoutLayer",
    "EltwiseLayer",
    "FlattenLayer",
    "LRNLayer",
    "Pooling",
    "PoolingLayer",
    "ReLULayer",
    "ReshapeLayer",
    "SigmoidLayer",
    "SliceLayer",
    "TanHLayer",
]


# An enumeration and no Literal, as other choices are: users of the original wrote Pooling.Max.
class Pooling(StrEnum):
    """What is taken of a window."""

    Max = "MAX"
    Ave = "AVE"


def PoolingLayer(  # noqa: PLR0913 - as many as Caffe's message has fields
    name: str,
    bottoms: Blobs,
    pooling: Pooling = Pooling.Max,
    kernel: Size | None = None,
    stride: Size = 1,
    *,
    pad: Size = 0,
    global_pooling: bool = False,
    round_mode: Literal["CEIL", "FLOOR"] = "CEIL",
    **options: Unpack[Options],
) -> LayerParameter:
    """Greatest value or mean of each window.

    Args:
        name: the layer's name.
        bottoms: the images.
        pooling: which of the two.
        kernel: size of the window; none with `global_pooling`.
        stride: steps of the window.
        pad: rows and columns on each side; the mean counts them as 0.
        global_pooling: the window is the whole image.
        round_mode: what becomes of a window that reaches over the edge: CEIL keeps it.
        options: see `Options`.
    """
    layer = make(
        "Pooling",
        name,
        bottoms,
        options,
        **along_axes("kernel", kernel),
        **along_axes("stride", stride, default=1),
        **along_axes("pad", pad, default=0),
        pool=pooling,
        global_pooling=global_pooling,
        round_mode=round_mode,
    )
    if not layer.pooling_param.HasField("pool"):
        layer.pooling_param.pool = PoolingParameter.MAX  # the default, but people write it
    return layer


def LRNLayer(  # noqa: PLR0913 - as many as Caffe's message has fields
    name: str,
    bottoms: Blobs,
    *,
    local_size: int = 5,
    alpha: float = 1.0,
    beta: float = 0.75,
    k: float = 1.0,
    norm_region: Literal["ACROSS_CHANNELS", "WITHIN_CHANNEL"] = "ACROSS_CHANNELS",
    **options: Unpack[Options],
) -> LayerParameter:
    """Divide by (k + alpha / n · Σ x²)^beta over n neighbours, channels or cells."""
    # The defaults are caffe.proto's; published nets give alpha, 1e-4 as a rule.
    return make(
        "LRN",
        name,
        bottoms,
        options,
        local_size=local_size,
        alpha=alpha,
        beta=beta,
        k=k,
        norm_region=norm_region,
    )


def ReLULayer(
    name: str, bottoms: Blobs, *, negative_slope: float = 0.0, **options: Unpack[Options]
) -> LayerParameter:
    """max(x, 0), or negative_slope · x below 0."""
    return make("ReLU", name, bottoms, options, negative_slope=negative_slope)


def SigmoidLayer(name: str, bottoms: Blobs, **options: Unpack[Options]) -> LayerParameter:
    """1 / (1 + e^-x)."""
    return make("Sigmoid", name, bottoms, options)


def TanHLayer(name: str, bottoms: Blobs, **options: Unpack[Options]) -> LayerParameter:
    """Hyperbolic tangent."""
    return make("TanH", name, bottoms, options)


def DropoutLayer(name: str, bottoms: Blobs, ratio: float = 0.5, **options: Unpack[Options]) -> LayerParameter:
    """In TRAIN, `ratio` of the numbers become 0 and the others grow by 1 / (1 - ratio)."""
    return make("Dropout", name, bottoms, options, dropout_ratio=ratio)


def EltwiseLayer(
    name: str,
    bottoms: Blobs,
    operation: Literal["PROD", "SUM", "MAX"] = "SUM",
    *,
    coeff: Sequence[float] = (),
    **options: Unpack[Options],
) -> LayerParameter:
    """Sum (with a coefficient for each bottom), product or maximum of bottoms of one shape."""
    return make("Eltwise", name, bottoms, options, operation=operation, coeff=coeff)


def ConcatLayer(name: str, bottoms: Blobs, *, axis: int = 1, **options: Unpack[Options]) -> LayerParameter:
    """Bottoms one after the other along an axis: the channels."""
    return make("Concat", name, bottoms, options, axis=axis)


def SliceLayer(
    name: str,
    bottoms: Blobs,
    *,
    axis: int = 1,
    slice_point: Sequence[int] = (),
    **options: Unpack[Options],
) -> LayerParameter:
    """Cut along an axis, before each of `slice_point` or into equal pieces; name the pieces in `tops`."""
    return make("Slice", name, bottoms, options, axis=axis, slice_point=slice_point)


def FlattenLayer(
    name: str, bottoms: Blobs, *, axis: int = 1, end_axis: int = -1, **options: Unpack[Options]
) -> LayerParameter:
    """Axes from `axis` to `end_axis` become one."""
    return make("Flatten", name, bottoms, options, axis=axis, end_axis=end_axis)


def ReshapeLayer(
    name: str,
    bottoms: Blobs,
    shape: Sequence[int],
    *,
    axis: int = 0,
    num_axes: int = -1,
    **options: Unpack[Options],
) -> LayerParameter:
    """Another shape for `num_axes` axes from `axis` on; 0 keeps a size, one -1 takes what is left."""
    return make("Reshape", name, bottoms, options, shape={"dim": shape}, axis=axis, num_axes=num_axes)
