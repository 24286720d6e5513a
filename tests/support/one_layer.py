"""One layer on its own, built from text and run on arrays, for tests of the layers."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from torch import Tensor, nn

from sparknet.caffe.layers import LAYERS, Layer, Shape
from sparknet.caffe.schema import LayerParameter
from sparknet.errors import NetError


def description(text: str, bottoms: int) -> LayerParameter:
    """The message of a layer: `type` and parameters from the text; bottoms are named b0, b1, ..., one top is y."""
    message = text_format.Parse(text, LayerParameter())
    message.bottom.extend(f"b{place}" for place in range(bottoms))
    if not message.top:
        message.top.append("y")
    return message


def layer(text: str, *shapes: Shape) -> Layer:
    """The layer over bottoms of these shapes, in float64."""
    message = description(text, len(shapes))
    return LAYERS[message.type](message, shapes).double()


def layer_of_type(kind: str, text: str, *shapes: Shape, tops: int = 1) -> Layer:
    """The layer in float32; `text` is what stands beside its type in a net file: `pooling_param { ... }`."""
    parameters = text_format.Parse(text, LayerParameter(type=kind, top=[f"top{at}" for at in range(tops)]))
    return LAYERS[kind](parameters, shapes)


def run(text: str, *arrays: np.ndarray) -> list[np.ndarray]:
    """The tops for these bottoms, held against the shapes that the pass without memory finds."""
    found = layer(text, *(array.shape for array in arrays))(*(torch.tensor(array).double() for array in arrays))
    tops = found if isinstance(found, tuple) else (found,)
    ghosts = layer(text, *(array.shape for array in arrays)).to("meta")(
        *(torch.empty(array.shape, device="meta", dtype=torch.float64) for array in arrays)
    )
    planned = ghosts if isinstance(ghosts, tuple) else (ghosts,)
    assert [top.shape for top in planned] == [top.shape for top in tops]
    assert all(top.dtype == torch.float64 for top in tops)
    return [top.detach().numpy() for top in tops]


def gradients(text: str, *arrays: np.ndarray, top_diff: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
    """What the backward pass gives each bottom for `top_diff`, ones if not given, at the tops; nothing is zeros."""
    bottoms = [torch.tensor(array).double().requires_grad_() for array in arrays]
    found = layer(text, *(array.shape for array in arrays))(*bottoms)
    tops = found if isinstance(found, tuple) else (found,)
    diffs = (
        [torch.ones_like(top) for top in tops] if top_diff is None else [torch.tensor(diff) for diff in top_diff]
    )
    moved = [(top, diff) for top, diff in zip(tops, diffs, strict=True) if top.requires_grad]
    torch.autograd.backward([top for top, _ in moved], [diff for _, diff in moved])
    return [np.zeros(x.shape) if x.grad is None else x.grad.numpy() for x in bottoms]


def fault(text: str, *shapes: Shape) -> str:
    """What the layer refuses these bottoms with."""
    with pytest.raises(NetError) as caught:
        layer(text, *shapes)
    return str(caught.value)


def export(text: str, *arrays: np.ndarray, batches: Sequence[int] | None = None) -> None:
    """Assert that torch.export traces the layer for any batch, and that the program gives the same tops.

    Args:
        text: the layer.
        arrays: its bottoms.
        batches: places of the bottoms whose first axis is the batch; all, if not given.
    """
    moving = range(len(arrays)) if batches is None else batches
    module = layer(text, *(array.shape for array in arrays)).eval()
    bottoms = tuple(torch.tensor(array).double() for array in arrays)
    free = tuple({0: torch.export.Dim.DYNAMIC} if place in moving else None for place in range(len(arrays)))
    traced = torch.export.export(_Bottoms(module), bottoms, dynamic_shapes=(free,)).module()
    twice = tuple(torch.cat([x, x]) if place in moving else x for place, x in enumerate(bottoms))
    for given in (bottoms, twice):
        for mine, theirs in zip(_tuple(module(*given)), _tuple(traced(*given)), strict=True):
            torch.testing.assert_close(theirs, mine)


class _Bottoms(nn.Module):
    """Gives every layer the same signature, which the description of moving axes must mirror."""

    def __init__(self, inner: Layer) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.inner(*bottoms)


def _tuple(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)
