"""Layers without bottoms that make their tops themselves: DummyData and Parameter."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparknet.caffe.layers.fillers import fill, new_blob
from sparknet.caffe.layers.layer import Layer, Shape
from sparknet.caffe.schema import FillerParameter, LayerParameter
from sparknet.caffe.schema.net_format_pb2 import DummyDataParameter, ParameterParameter
from sparknet.errors import NetError

__all__ = ["DummyData", "Parameter"]


class DummyData(Layer):
    """Blobs of given shapes from fillers: constant ones stay, all others are drawn anew in each pass.

    They draw from torch's default generator.
    """

    # `needs_output` stays true: constant tops are the layer's own memory, which must last for the next pass.
    bottom_count = (0, 0)
    top_count = (1, None)

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.dummy_data_param
        tops = len(parameters.top)
        self.shapes = _shapes(given, tops)
        if len(given.data_filler) not in (0, 1, tops):
            raise NetError(
                f"data_filler is given {len(given.data_filler)} times for {tops} tops; give none, one for all "
                "or one for each"
            )
        fillers = list(given.data_filler) or [FillerParameter()]
        self.fillers: list[FillerParameter] = fillers * tops if len(fillers) == 1 else fillers
        for place, (shape, filler) in enumerate(zip(self.shapes, self.fillers, strict=True)):
            if filler.type == "constant":
                kept = new_blob(shape, filler)
            else:
                new_blob(shape, filler, device="meta")  # refuses what cannot be, and draws nothing
                kept = torch.empty(0)  # follows the net's dtype and device, as what is drawn must
            self.register_buffer(f"top{place}", kept, persistent=False)

    def forward(self) -> tuple[Tensor, ...]:
        """One tensor for each top."""
        return tuple(self._top(place) for place in range(len(self.shapes)))

    def _top(self, place: int) -> Tensor:
        kept: Tensor = getattr(self, f"top{place}")
        filler = self.fillers[place]
        # dummy_data_layer.cpp fills these once (refill_).
        if filler.type == "constant":
            return kept.view_as(kept)
        return fill(kept.new_empty(self.shapes[place]), filler)


class Parameter(Layer):
    """One learned blob as a top, zero to begin with (caffe `parameter_layer.hpp`)."""

    # `needs_output` stays true: the top is the blob itself, and overwriting it would be training.
    bottom_count = (0, 0)
    blob_names = ("weight",)

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given: ParameterParameter = parameters.parameter_param
        shape = tuple(given.shape.dim)
        if not given.HasField("shape") or any(size < 1 for size in shape):
            raise NetError(f"parameter_param's shape is {shape}; give a shape with sizes of at least 1")
        self.weight = nn.Parameter(new_blob(shape))

    def forward(self) -> Tensor:
        """The blob."""
        return self.weight.view_as(self.weight)


def _shapes(given: DummyDataParameter, tops: int) -> list[Shape]:
    """The shape of each top, from `shape` or from the four numbers that came before it."""
    legacy = {name: list(getattr(given, name)) for name in ("num", "channels", "height", "width")}
    if not any(legacy.values()):
        shapes = [tuple(shape.dim) for shape in given.shape]
        if len(shapes) not in (1, tops):
            raise NetError(
                f"dummy_data_param has {len(shapes)} shapes for {tops} tops; give one for all or one for each"
            )
        return _checked(shapes * tops if len(shapes) == 1 else shapes)
    if given.shape:
        raise NetError("dummy_data_param has shape and also num, channels, height or width; give shape alone")
    for name, sizes in legacy.items():
        if len(sizes) not in (1, tops):
            raise NetError(
                f"dummy_data_param has {name} {len(sizes)} times for {tops} tops; give one for all or one for each"
            )
    columns = [sizes * tops if len(sizes) == 1 else sizes for sizes in legacy.values()]
    return _checked(list(zip(*columns, strict=True)))


def _checked(shapes: list[Shape]) -> list[Shape]:
    for shape in shapes:
        if any(size < 1 for size in shape):
            raise NetError(f"dummy_data_param has shape {shape}; every size must be at least 1")
    return shapes
