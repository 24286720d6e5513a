"""A layer's blobs, new and filled: Caffe's fillers (caffe/filler.hpp)."""

import difflib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from sparknet.caffe.layers.blob_limits import check_blob_shape
from sparknet.caffe.schema import FillerParameter
from sparknet.errors import NetError

__all__ = ["fill", "new_blob"]


def new_blob(shape: tuple[int, ...], filler: FillerParameter | None = None, *, device: str | None = None) -> Tensor:
    """A blob of this shape, filled; zeros if no filler is given. `device` is torch's default if not given.

    Raises:
        NetError: a blob cannot have this shape, there is no memory for it, or what `fill` raises.
    """
    check_blob_shape(shape)
    try:
        return fill(torch.empty(shape, device=device), filler or FillerParameter())
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split()) or "there is not enough memory"
        raise NetError(
            f"a blob of shape {shape}, {math.prod(shape)} numbers, cannot be made here: {reason}; make its sizes "
            "smaller, or use a machine with more memory"
        ) from error


def fill(tensor: Tensor, filler: FillerParameter) -> Tensor:
    """Fill in place, drawing from torch's default generator; returns the tensor.

    Where a filler asks for the fan: Caffe's fan_in is count/shape[0] and its fan_out count/shape[1], whatever the
    layer means by these axes; `variance_norm` says which of them, or their average.

    Raises:
        NetError: there is no such filler, or it cannot fill a blob of this shape or with these numbers.
    """
    if filler.type not in _FILLERS:
        close = difflib.get_close_matches(filler.type, _FILLERS, n=1)
        raise NetError(
            f"filler type is {filler.type!r}; "
            + (f"did you mean {close[0]!r}? " if close else "")
            + f"known are {', '.join(sorted(_FILLERS))}"
        )
    if filler.sparse != -1 and filler.type != "gaussian":
        raise NetError(
            f"sparse is {filler.sparse} with filler {filler.type}; only gaussian can be sparse: leave it out"
        )
    # The text format has nan and inf; a weight that is one of them spoils everything, and much later.
    for field in ("value", "min", "max", "mean", "std"):
        number: float = getattr(filler, field)
        if not math.isfinite(number):
            raise NetError(f"{filler.type} filler: {field} is {number:g}; it must be a finite number")
    # The distributions are Caffe's; the numbers of a seed are torch's.
    with torch.no_grad():
        _FILLERS[filler.type](tensor, filler)
    return tensor


def _constant(tensor: Tensor, filler: FillerParameter) -> None:
    tensor.fill_(filler.value)


def _uniform(tensor: Tensor, filler: FillerParameter) -> None:
    if filler.min > filler.max:
        raise NetError(f"uniform filler: min is {filler.min:g} and max {filler.max:g}; min must not be above max")
    # Beyond it the distance overflows, and torch raises without a word of fillers.
    widest = torch.finfo(tensor.dtype).max
    if filler.max - filler.min > widest:
        raise NetError(
            f"uniform filler: min is {filler.min:g} and max {filler.max:g}; they must not lie further apart than "
            f"{widest:g}"
        )
    tensor.uniform_(filler.min, filler.max)


def _gaussian(tensor: Tensor, filler: FillerParameter) -> None:
    """N(mean, std²); with `sparse`, each value stays with probability sparse/shape[0]."""
    # math_functions.cpp, caffe_rng_gaussian: CHECK_GT(sigma, 0).
    if filler.std <= 0:
        raise NetError(f"gaussian filler: std is {filler.std:g}; it must be above 0 (or use a constant filler)")
    tensor.normal_(filler.mean, filler.std)
    if filler.sparse == -1:
        return
    rows = _rows(tensor, filler)
    if not 0 <= filler.sparse <= rows:
        raise NetError(
            f"gaussian filler: sparse is {filler.sparse}; for a blob of {rows} rows it must be 0 to {rows}"
        )
    # filler.hpp: each number by itself, so that an output has `sparse` of them on average only.
    tensor.mul_(torch.empty_like(tensor).bernoulli_(filler.sparse / rows))


def _positive_unitball(tensor: Tensor, filler: FillerParameter) -> None:
    """U(0, 1), then each row divided by its sum."""
    rows = tensor.uniform_().view(_rows(tensor, filler), -1)
    rows.div_(rows.sum(1, keepdim=True))


def _xavier(tensor: Tensor, filler: FillerParameter) -> None:
    """U(-a, a) with a = √(3/n) (Glorot and Bengio 2010)."""
    limit = math.sqrt(3 / _fan(tensor, filler))
    tensor.uniform_(-limit, limit)


def _msra(tensor: Tensor, filler: FillerParameter) -> None:
    """N(0, 2/n) (He et al. 2015)."""
    tensor.normal_(0, math.sqrt(2 / _fan(tensor, filler)))


def _bilinear(tensor: Tensor, filler: FillerParameter) -> None:
    """The same tent in each plane, for a Deconvolution that enlarges by interpolation."""
    shape = tuple(tensor.shape)
    if len(shape) != 4 or shape[2] != shape[3]:
        raise NetError(f"bilinear filler: the blob has shape {shape}; it must have four axes, the last two equal")
    side = shape[3]
    # filler.hpp: f = ceil(side / 2) and c = (side - 1) / (2 f). The filter interpolates where the stride is f: a
    # kernel of 2 f - f % 2, as its comment there says.
    half = math.ceil(side / 2)
    tent = torch.tensor([1 - abs(x / half - (side - 1) / (2 * half)) for x in range(side)], dtype=torch.float64)
    tensor.copy_(torch.outer(tent, tent))


def _rows(tensor: Tensor, filler: FillerParameter) -> int:
    if tensor.dim() == 0:
        raise NetError(f"{filler.type} filler: the blob has no axes; use a constant, uniform or gaussian filler")
    return tensor.shape[0]


def _fan(tensor: Tensor, filler: FillerParameter) -> float:
    # filler.hpp: count / num and count / channels. Of a Deconvolution, whose blob begins with its inputs, they
    # are the wrong way round; a net is what its fillers made of it in Caffe.
    fan_in = tensor.numel() / _rows(tensor, filler)
    fan_out = tensor.numel() / (tensor.shape[1] if tensor.dim() > 1 else 1)
    match filler.variance_norm:
        case FillerParameter.FAN_OUT:
            return fan_out
        case FillerParameter.AVERAGE:
            return (fan_in + fan_out) / 2
        case _:
            return fan_in


_FILLERS: dict[str, Callable[[Tensor, FillerParameter], None]] = {
    "bilinear": _bilinear,
    "constant": _constant,
    "gaussian": _gaussian,
    "msra": _msra,
    "positive_unitball": _positive_unitball,
    "uniform": _uniform,
    "xavier": _xavier,
}
