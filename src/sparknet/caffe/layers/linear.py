"""Layers of one matrix: InnerProduct and Embed."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from sparknet.caffe.layers.axes import canonical_axis
from sparknet.caffe.layers.fillers import new_blob
from sparknet.caffe.layers.labels import in_range
from sparknet.caffe.layers.layer import Layer, Legal, Shape
from sparknet.caffe.schema import LayerParameter
from sparknet.errors import NetError

__all__ = ["Embed", "InnerProduct"]


class InnerProduct(Layer):
    """y = x W^T + b over everything from `axis` on; W is [out, in], or [in, out] with `transpose`."""

    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.inner_product_param
        (shape,) = bottoms
        self.axis = canonical_axis(given.axis, shape)
        self.transpose = given.transpose
        inputs, outputs = math.prod(shape[self.axis :]), given.num_output
        _check_positive("num_output", outputs, "inner_product_param")
        shape = (inputs, outputs) if self.transpose else (outputs, inputs)
        self.weight = nn.Parameter(new_blob(shape, given.weight_filler))
        self.bias = nn.Parameter(new_blob((outputs,), given.bias_filler)) if given.bias_term else None
        self.blob_names = ("weight", "bias") if given.bias_term else ("weight",)

    def forward(self, x: Tensor) -> Tensor:
        """[*outer, *inner] to [*outer, num_output]."""
        # `transpose` says how the blob lies in a file; t() is a view, so the product is the same kernel.
        weight = self.weight.t() if self.transpose else self.weight
        # The axes in front stay: a bottom of [time, batch, features] with axis 2 is multiplied row by row.
        return functional.linear(x.flatten(self.axis), weight, self.bias)

    def multiply_adds(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        """Rows times weights."""
        return math.prod(tops[0][: self.axis]) * self.weight.numel()


class Embed(Layer):
    """Row x of a matrix W [input_dim, num_output], plus b: InnerProduct of a one-hot vector that is never made.

    x holds whole numbers from 0 to input_dim - 1, as floats; it gets no gradient.
    """

    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.embed_param
        _check_positive("num_output", given.num_output, "embed_param")
        _check_positive("input_dim", given.input_dim, "embed_param")
        self.legal = {0: Legal(most=given.input_dim - 1, whole=True, room="input_dim of embed_param")}
        self.weight = nn.Parameter(new_blob((given.input_dim, given.num_output), given.weight_filler))
        self.bias = nn.Parameter(new_blob((given.num_output,), given.bias_filler)) if given.bias_term else None
        self.blob_names = ("weight", "bias") if given.bias_term else ("weight",)

    def forward(self, x: Tensor) -> Tensor:
        """[*any] to [*any, num_output]."""
        # embed_layer.cpp casts likewise: indices come as floats, as everything in a blob does.
        places = x.long()
        with in_range(places, self.weight.shape[0], "index"):
            rows = functional.embedding(places, self.weight)
        return rows if self.bias is None else rows + self.bias


def _check_positive(field: str, value: int, message: str) -> None:
    if value < 1:
        raise NetError(f"{field} is {value}; it must be at least 1: set {message}.{field}")
