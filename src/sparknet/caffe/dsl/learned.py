"""Layers with blobs of their own."""

from typing import Any, Unpack, cast

from sparknet.caffe.dsl.message import Blobs, Options, Size, along_axes, make
from sparknet.caffe.schema import FillerParameter, LayerParameter

__all__ = [
    "BatchNormLayer",
    "ConvolutionLayer",
    "ConvolutionOptions",
    "DeconvolutionLayer",
    "InnerProductLayer",
    "ScaleLayer",
]


# A TypedDict, so that both functions check these by name without a list of ten parameters each.
class ConvolutionOptions(Options, total=False):
    """What convolutions take besides."""

    stride: Size
    """Steps of the window; 1 where not given."""
    pad: Size
    """Rows and columns of 0 on each side; 0 where not given."""
    group: int
    """Channels are split into so many groups that do not see each other; 1 where not given."""
    dilation: Size
    """Distance between a window's cells; 1 where not given."""
    bias: bool
    """Whether there are biases; true where not given."""
    weight_filler: FillerParameter
    """How weights start; at 0 where not given, which no net learns from."""
    bias_filler: FillerParameter
    """How biases start; at 0 where not given."""


def ConvolutionLayer(
    name: str, bottoms: Blobs, kernel: Size, num_output: int, **options: Unpack[ConvolutionOptions]
) -> LayerParameter:
    """Convolution; blobs: weights [num_output, channels / group, *kernel], biases [num_output]."""
    return _convolution("Convolution", name, bottoms, (kernel, num_output), options)


def DeconvolutionLayer(
    name: str, bottoms: Blobs, kernel: Size, num_output: int, **options: Unpack[ConvolutionOptions]
) -> LayerParameter:
    """Transposed convolution; blobs: weights [channels, num_output / group, *kernel], biases [num_output]."""
    return _convolution("Deconvolution", name, bottoms, (kernel, num_output), options)


def _convolution(
    kind: str, name: str, bottoms: Blobs, size: tuple[Size, int], options: ConvolutionOptions
) -> LayerParameter:
    given: dict[str, Any] = {**options}
    kernel, num_output = size
    dilation = given.pop("dilation", 1)
    fields = {
        **along_axes("kernel", kernel),
        **along_axes("stride", given.pop("stride", 1), default=1),
        **along_axes("pad", given.pop("pad", 0), default=0),
        # a repeated field, which has no default that `make` could leave out
        "dilation": None if dilation == 1 else dilation,
        "bias_term": given.pop("bias", None),
        **{key: given.pop(key, None) for key in ("group", "weight_filler", "bias_filler")},
    }
    return make(kind, name, bottoms, cast("Options", given), num_output=num_output, **fields)


def InnerProductLayer(  # noqa: PLR0913 - as many as Caffe's message has fields
    name: str,
    bottoms: Blobs,
    num_output: int,
    *,
    bias: bool = True,
    weight_filler: FillerParameter | None = None,
    bias_filler: FillerParameter | None = None,
    axis: int = 1,
    transpose: bool = False,
    **options: Unpack[Options],
) -> LayerParameter:
    """Every output from every input from `axis` on; blobs: weights [num_output, inputs], biases [num_output]."""
    return make(
        "InnerProduct",
        name,
        bottoms,
        options,
        num_output=num_output,
        bias_term=bias,
        weight_filler=weight_filler,
        bias_filler=bias_filler,
        axis=axis,
        transpose=transpose,
    )


def BatchNormLayer(
    name: str,
    bottoms: Blobs,
    *,
    use_global_stats: bool | None = None,
    moving_average_fraction: float = 0.999,
    eps: float = 1e-5,
    **options: Unpack[Options],
) -> LayerParameter:
    """Each channel to mean 0 and variance 1; a Scale layer with bias usually follows.

    Args:
        name: the layer's name.
        bottoms: one blob.
        use_global_stats: the running statistics instead of the batch's; not given: in TEST and not in TRAIN.
        moving_average_fraction: how much of the running statistics each batch leaves.
        eps: added to the variance.
        options: see `Options`.
    """
    return make(
        "BatchNorm",
        name,
        bottoms,
        options,
        use_global_stats=use_global_stats,
        moving_average_fraction=moving_average_fraction,
        eps=eps,
    )


def ScaleLayer(  # noqa: PLR0913 - as many as Caffe's message has fields
    name: str,
    bottoms: Blobs,
    *,
    axis: int = 1,
    num_axes: int = 1,
    filler: FillerParameter | None = None,
    bias: bool = False,
    bias_filler: FillerParameter | None = None,
    **options: Unpack[Options],
) -> LayerParameter:
    """Multiply by a learned factor for each channel, or by a second bottom; `bias` adds a learned number."""
    return make(
        "Scale",
        name,
        bottoms,
        options,
        axis=axis,
        num_axes=num_axes,
        filler=filler,
        bias_term=bias,
        bias_filler=bias_filler,
    )
