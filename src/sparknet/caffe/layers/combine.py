"""Layers that join blobs or take them apart: Concat, Slice, Split, Eltwise."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sparknet.caffe.layers.axes import canonical_axis
from sparknet.caffe.layers.layer import Layer, Shape
from sparknet.caffe.schema import LayerParameter
from sparknet.caffe.schema.net_format_pb2 import ConcatParameter, EltwiseParameter, SliceParameter
from sparknet.errors import NetError

__all__ = ["Concat", "Eltwise", "Slice", "Split"]


class Concat(Layer):
    """The bottoms one behind the other along `axis` (once called `concat_dim`)."""

    bottom_count = (1, None)
    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.concat_param
        first = bottoms[0]
        if len(bottoms) == 1:
            self.caffe_in_place = "right"  # the top is the bottom
        self.axis = _axis(given, first, "concat_dim")
        for place, shape in enumerate(bottoms):
            if _without(shape, self.axis) != _without(first, self.axis) or len(shape) != len(first):
                raise NetError(
                    f"bottom {place} ({parameters.bottom[place]!r}) has shape {shape} and bottom 0 "
                    f"({parameters.bottom[0]!r}) {first}; they may differ along axis {self.axis} alone"
                )

    def forward(self, *bottoms: Tensor) -> Tensor:
        """[*outer, n_i, *inner] to [*outer, sum n_i, *inner]."""
        return torch.cat(bottoms, self.axis)


class Slice(Layer):
    """The parts of a blob along `axis` (once called `slice_dim`): cut at `slice_point`, or into equal ones."""

    # `needs_output` stays true: the tops are views of the bottom, which whoever overwrote them would overwrite.
    top_count = (1, None)

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.slice_param
        (shape,) = bottoms
        self.axis = _axis(given, shape, "slice_dim")
        self.tops = len(parameters.top)
        if self.tops == 1:
            self.caffe_in_place = "right"  # the top is the bottom
        self.points = tuple(given.slice_point)
        if self.points:
            self._check_points(shape)
        elif shape[self.axis] % self.tops:
            raise NetError(
                f"{self.tops} tops cannot share the {shape[self.axis]} entries of axis {self.axis} of a bottom of "
                f"shape {shape} equally; give slice_point"
            )

    def _check_points(self, shape: Shape) -> None:
        if len(self.points) != self.tops - 1:
            raise NetError(
                f"slice_point is given {len(self.points)} times for {self.tops} tops; give it "
                f"{self.tops - 1} times, where each top but the first begins"
            )
        bounds = (0, *self.points, shape[self.axis])
        if any(start >= stop for start, stop in pairwise(bounds)):
            raise NetError(
                f"slice_point is {', '.join(map(str, self.points))}; expected rising numbers from 1 to "
                f"{shape[self.axis] - 1}, inside axis {self.axis} of a bottom of shape {shape}"
            )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[*outer, n, *inner] to tops [*outer, n_i, *inner]."""
        size = x.shape[self.axis]
        points = self.points or [size // self.tops * place for place in range(1, self.tops)]
        bounds = (0, *points, size)
        return tuple(x.narrow(self.axis, start, stop - start) for start, stop in pairwise(bounds))


class Split(Layer):
    """The same blob under several names; their gradients add up."""

    keeps_numbers = True
    caffe_in_place = "refused"

    # `needs_output` stays true: one reader that worked in place would change what the other readers see.
    top_count = (1, None)

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        self.tops = len(parameters.top)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Any shape to tops of the same shape."""
        return tuple(x.view_as(x) for _ in range(self.tops))


class Eltwise(Layer):
    """Number by number over blobs of one shape: product, sum weighted by `coeff`, or maximum.

    The gradient of a maximum goes to one bottom: of equal numbers the second bottom comes before the first, and
    both before all later ones.
    """

    bottom_count = (2, None)
    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.eltwise_param
        for place, shape in enumerate(bottoms):
            if shape != bottoms[0]:
                raise NetError(
                    f"bottom {place} ({parameters.bottom[place]!r}) has shape {shape} and bottom 0 "
                    f"({parameters.bottom[0]!r}) {bottoms[0]}; they must be equal"
                )
        if len(given.coeff) not in (0, len(bottoms)):
            raise NetError(
                f"coeff is given {len(given.coeff)} times for {len(bottoms)} bottoms; give none or one for each"
            )
        if given.coeff and given.operation == EltwiseParameter.PROD:
            raise NetError("operation is PROD and coeff is given; coefficients are for SUM: leave them out")
        self.operation = given.operation
        self.factors = tuple(given.coeff) or (1.0,) * len(bottoms)

    def forward(self, *bottoms: Tensor) -> Tensor:
        """Two or more blobs of a shape to that shape."""
        for place, x in enumerate(bottoms):
            if x.shape != bottoms[0].shape:
                raise NetError(
                    f"bottom {place} has shape {tuple(x.shape)} and bottom 0 {tuple(bottoms[0].shape)}; they must "
                    "be equal"
                )
        first, second, *others = bottoms
        if self.operation == EltwiseParameter.PROD:
            # The gradient is the product of the others, which `stable_prod_grad` asks for. Without that flag
            # Caffe divides the top by the bottom: the same but for rounding, and for the NaN at 0.
            top = first * second
            for x in others:
                top = top * x
            return top
        if self.operation == EltwiseParameter.MAX:
            # eltwise_layer.cpp: the first must be greater to win, and so must each later one. torch.maximum would
            # give half of the gradient to either of two equal numbers.
            top = torch.where(first > second, first, second)
            for x in others:
                top = torch.where(x > top, x, top)
            return top
        # Nearly every Eltwise is a residual sum: no pass for coefficients of 1.
        top = first if self.factors[0] == 1 else first * self.factors[0]
        for x, factor in zip(bottoms[1:], self.factors[1:], strict=True):
            top = torch.add(top, x, alpha=factor)
        return top


def _axis(given: ConcatParameter | SliceParameter, shape: Shape, legacy: str) -> int:
    """The axis, which the file may also give by its deprecated name."""
    if not given.HasField(legacy):
        return canonical_axis(given.axis, shape)
    known: int = getattr(given, legacy)
    if given.HasField("axis"):
        raise NetError(f"axis is {given.axis} and {legacy} is {known}; they mean the same: give axis alone")
    return canonical_axis(known, shape, legacy)


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]
