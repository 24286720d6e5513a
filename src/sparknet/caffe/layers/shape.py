"""Layers that give numbers another shape, pick some or add some up: no arithmetic beyond sums."""

import math
from collections.abc import Sequence

from torch import Tensor

from sparknet.caffe.layers.axes import canonical_axis
from sparknet.caffe.layers.labels import in_range
from sparknet.caffe.layers.layer import Layer, Shape
from sparknet.caffe.schema import LayerParameter
from sparknet.caffe.schema.net_format_pb2 import ReductionParameter
from sparknet.errors import NetError

__all__ = ["BatchReindex", "Crop", "Filter", "Flatten", "Reduction", "Reshape", "Silence", "Tile"]


class Flatten(Layer):
    """The axes from `axis` to `end_axis` made one."""

    keeps_numbers = True
    caffe_in_place = "refused"

    # `needs_output` stays true, as in Reshape and Crop: the top may be a view of the bottom, and whoever
    # overwrote it would overwrite the bottom too.
    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.flatten_param
        self.start = canonical_axis(given.axis, bottoms[0])
        self.stop = canonical_axis(given.end_axis, bottoms[0], "end_axis") + 1
        if self.start > self.stop:
            raise NetError(
                f"axis is {given.axis} and end_axis is {given.end_axis}; for a bottom of shape {bottoms[0]} that "
                "ends before it begins"
            )

    def forward(self, x: Tensor) -> Tensor:
        """[*outer, *middle, *inner] to [*outer, product of middle, *inner]."""
        # flatten_layer.cpp lets end_axis be axis - 1: of no axes it makes one of size 1, where torch's flatten
        # raises.
        size = math.prod(x.shape[self.start : self.stop])
        return x.reshape(*x.shape[: self.start], size, *x.shape[self.stop :])


class Reshape(Layer):
    """The axes from `axis` on, `num_axes` of them, replaced by those of `shape`.

    In `shape` 0 copies the bottom's size at that place and one -1 takes what is left.
    """

    keeps_numbers = True
    caffe_in_place = "refused"

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.reshape_param
        (shape,) = bottoms
        self.sizes = tuple(given.shape.dim)
        if any(size < -1 for size in self.sizes) or self.sizes.count(-1) > 1:
            raise NetError(f"shape is {self.sizes}; expected sizes, 0 to copy one, and at most one -1 to infer")
        # reshape_layer.cpp: unlike in all other layers, -1 stands behind the last axis, so that axes can be
        # appended.
        self.start = given.axis if given.axis >= 0 else given.axis + len(shape) + 1
        if not 0 <= self.start <= len(shape):
            raise NetError(
                f"axis is {given.axis}; for a bottom of shape {shape} it must be from {-len(shape) - 1} "
                f"to {len(shape)}"
            )
        self.stop = len(shape) if given.num_axes == -1 else self.start + given.num_axes
        if not self.start <= self.stop <= len(shape):
            raise NetError(
                f"num_axes is {given.num_axes}; from axis {self.start} of a bottom of shape {shape} there are "
                f"{len(shape) - self.start}: give 0 to {len(shape) - self.start}, or -1 for all"
            )
        copied = [place for place, size in enumerate(self.sizes) if size == 0]
        if copied and self.start + copied[-1] >= len(shape):
            raise NetError(
                f"shape is {self.sizes}: its 0 at place {copied[-1]} copies axis {self.start + copied[-1]}, which "
                f"a bottom of shape {shape} does not have"
            )
        # Here and not in `forward`, so that the fault has a layer and a line.
        self._check_count(shape)

    def _check_count(self, shape: Shape) -> None:
        found, inferred = math.prod(shape), self._target(shape)
        known = math.prod(size for size in inferred if size != -1)
        if found % known if -1 in inferred else found != known:
            raise NetError(
                f"a bottom of shape {shape} holds {found} numbers, which do not fit shape {inferred} (with "
                f"{known} but for the -1): change reshape_param's shape {self.sizes}"
            )

    def _target(self, shape: Shape) -> Shape:
        """The top's shape, with a -1 where one is to be inferred."""
        middle = tuple(size if size else shape[self.start + place] for place, size in enumerate(self.sizes))
        return (*shape[: self.start], *middle, *shape[self.stop :])

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers in the new shape."""
        return x.reshape(self._target(tuple(x.shape)))


class Crop(Layer):
    """The part of the first bottom that is as large as the second along all axes from `axis` on.

    It begins at `offset`: one for all these axes, or one for each. The second bottom gives its sizes alone.
    """

    bottom_count = (2, 2)

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.crop_param
        shape, reference = bottoms
        self.axis = canonical_axis(given.axis, shape)
        cut = len(shape) - self.axis
        if len(given.offset) not in (0, 1, cut):
            raise NetError(
                f"offset is given {len(given.offset)} times; a crop from axis {given.axis} of a bottom of shape "
                f"{shape} needs none, 1 or {cut}"
            )
        self.offsets = tuple(given.offset) if len(given.offset) > 1 else (*given.offset, 0)[:1] * cut
        # crop_layer.cpp takes the second bottom's size at the same axis number, whatever the sizes in front are.
        if len(reference) < len(shape):
            raise NetError(
                f"the second bottom has shape {reference}; expected as many axes as the first, of shape {shape}"
            )
        for axis, offset in enumerate(self.offsets, self.axis):
            if offset + reference[axis] > shape[axis]:
                raise NetError(
                    f"axis {axis} of the first bottom has size {shape[axis]}; offset {offset} and the second "
                    f"bottom's size {reference[axis]} reach {offset + reference[axis]}"
                )

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """[*outer, *sizes] and [*any, *smaller sizes] to [*outer, *smaller sizes]."""
        for axis, offset in enumerate(self.offsets, self.axis):
            x = x.narrow(axis, offset, reference.shape[axis])
        return x


class Tile(Layer):
    """The blob `tiles` times behind itself along `axis`."""

    keeps_numbers = True
    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.tile_param
        if given.tiles < 1:
            found = str(given.tiles) if given.HasField("tiles") else "not given"
            raise NetError(f"tiles is {found}; it must be at least 1")
        self.axis, self.tiles = canonical_axis(given.axis, bottoms[0]), given.tiles

    def forward(self, x: Tensor) -> Tensor:
        """[*outer, n, *inner] to [*outer, n * tiles, *inner]."""
        times = [1] * x.dim()
        times[self.axis] = self.tiles
        return x.repeat(times)


class Reduction(Layer):
    """`coeff` times the sum over all axes from `axis` on: of x, of |x| (ASUM), of x^2 (SUMSQ); or the mean of x."""

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.reduction_param
        self.axis = canonical_axis(given.axis, bottoms[0])
        self.operation, self.factor = given.operation, given.coeff

    def forward(self, x: Tensor) -> Tensor:
        """[*outer, *inner] to [*outer]."""
        axes = tuple(range(self.axis, x.dim()))
        if self.operation == ReductionParameter.MEAN:
            return x.mean(axes) * self.factor
        if self.operation == ReductionParameter.ASUM:
            x = x.abs()
        elif self.operation == ReductionParameter.SUMSQ:
            x = x.square()
        return x.sum(axes) * self.factor


class Silence(Layer):
    """Takes its bottoms out of the net's outputs; their gradient is 0."""

    # silence_layer.cpp sets the gradient to 0; here none flows from it at all, which comes to the same.
    bottom_count = (1, None)
    top_count = (0, 0)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()


class BatchReindex(Layer):
    """The items of the first bottom that the second one names, in its order; gradients of repeated ones add up."""

    bottom_count = (2, 2)
    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        if len(bottoms[1]) != 1 or not bottoms[0]:
            raise NetError(
                f"the bottoms have shapes {bottoms[0]} and {bottoms[1]}; expected [batch, ...] and indices into it "
                "along one axis"
            )

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        """[batch, *item] and [chosen] to [chosen, *item]."""
        places = indices.long()
        with in_range(places, x.shape[0], "index"):
            return x.index_select(0, places)


class Filter(Layer):
    """The items of all bottoms but the last for which the last is not 0: as many as it says, in each pass anew."""

    bottom_count = (2, None)
    top_count = (1, None)
    needs_output = False

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        *items, selector = bottoms
        if len(parameters.top) != len(items):
            raise NetError(
                f"it has {len(parameters.top)} tops and {len(items)} bottoms before the one that selects; there "
                "must be as many"
            )
        if not selector or math.prod(selector[1:]) != 1:
            raise NetError(f"the last bottom, which selects, has shape {selector}; expected one number an item")
        for shape in items:
            if shape[:1] != selector[:1]:
                raise NetError(
                    f"a bottom has shape {shape}, and the one that selects {selector}; their first sizes must agree"
                )

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        """Each [batch, *item] to [chosen, *item]."""
        *items, selector = bottoms
        # filter_layer.cpp: how many there are is known with the numbers alone; before that it is all of them.
        if selector.is_meta:
            return tuple(items)
        chosen = selector.flatten().nonzero().squeeze(1)
        return tuple(item.index_select(0, chosen) for item in items)
