"""From a net's description to its layers, in order, with every blob's shape known.

Layers are built one after the other, as the file lists them. The shapes of a layer's tops are found by running it
over tensors without memory, so that no layer's arithmetic is written down twice.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn
from torch.func import functional_call

from sparknet.errors import NetError
from sparknet.nets.layers import INPUT_LAYERS, LAYERS, Layer, Shape, input_blobs
from sparknet.nets.plan import Learnable, Plan, Step
from sparknet.nets.schema import LayerParameter, ParamSpec
from sparknet.nets.shortcuts import take_shortcuts
from sparknet.nets.spec import NetSpec

__all__ = ["build"]


def build(spec: NetSpec, input_shapes: Mapping[str, Shape] | None = None) -> Plan:
    """Build the layers of one state of a net, filled from torch's default generator.

    Args:
        spec: what `NetSpec.select` left.
        input_shapes: shapes with the batch axis; they win over those in the file.

    Raises:
        NetError: the description is not a net: the message names layer, line, expected and found.
    """
    _check_types(spec)
    builder = _Builder(spec, dict(input_shapes or {}))
    for index in range(len(spec.parameters.layer)):
        builder.add(index)
    return builder.finish()


def _check_types(spec: NetSpec) -> None:
    known = [*LAYERS, *INPUT_LAYERS]
    faults: list[str] = []
    for index, layer in enumerate(spec.parameters.layer):
        if layer.type not in known:
            close = difflib.get_close_matches(layer.type, known, n=1)
            faults.append(spec.place(index) + (f", did you mean {close[0]}?" if close else ""))
    if faults:
        raise NetError(
            f"{len(faults)} layers are of types that are not supported: "
            + "; ".join(faults)
            + f"; supported are {', '.join(sorted(known))}"
        )


class _Builder:
    """The net so far."""

    def __init__(self, spec: NetSpec, input_shapes: dict[str, Shape]) -> None:
        self._spec = spec
        self._input_shapes = input_shapes
        self._plan = Plan()
        self._unread: set[str] = set()
        self._shared: dict[str, tuple[Learnable, int]] = {}
        """Blobs with a name of their own: where they stand in `learnable`."""

    def add(self, index: int) -> None:
        """Add the layer at `index` of the description."""
        description = self._spec.parameters.layer[index]
        try:
            if description.type in INPUT_LAYERS:
                self._add_inputs(description)
            else:
                self._add_layer(index, description)
        except NetError as error:
            raise NetError(f"{self._spec.place(index)}: {error}") from error

    def finish(self) -> Plan:
        """Close the net."""
        unknown = [name for name in self._input_shapes if name not in self._plan.inputs]
        if unknown:
            raise NetError(
                f"{self._spec.source}: input_shapes names {', '.join(unknown)}; the inputs are "
                f"{', '.join(self._plan.inputs) or 'none'}"
            )
        self._plan.outputs = tuple(sorted(self._unread))  # as Caffe, which keeps them in a set
        take_shortcuts(self._plan)
        return self._plan

    def _add_inputs(self, description: LayerParameter) -> None:
        if description.bottom:
            raise NetError(f"it has {len(description.bottom)} bottoms; a layer that stands for inputs has none")
        blobs = input_blobs(description)
        # a data layer's blobs have one batch size: labels follow the images that got another
        batches = {self._input_shapes[blob.name][:1] for blob in blobs if blob.name in self._input_shapes}
        for blob in blobs:
            shape = self._input_shapes.get(blob.name, blob.shape)
            if shape is not None and blob.kind != "Input" and len(batches) == 1:
                shape = (*next(iter(batches)), *shape[1:])
            if shape is None:
                raise NetError(
                    f"the shape of blob {blob.name!r} is not in the file; give it with the batch axis: "
                    f"input_shapes={{{blob.name!r}: (batch, channels, height, width)}}"
                )
            if any(size < 1 for size in shape):
                raise NetError(f"blob {blob.name!r} has shape {tuple(shape)}; every size must be at least 1")
            self._make(blob.name, tuple(shape))
            self._plan.inputs[blob.name] = blob

    def _add_layer(self, index: int, description: LayerParameter) -> None:
        kind = LAYERS[description.type]
        bottoms, tops = tuple(description.bottom), tuple(description.top)
        if kind.is_loss and not tops:
            # one each, as in Caffe, where these tops share this name but are never looked up by it
            tops = (f"(automatic) of {description.name}" if "(automatic)" in self._plan.shapes else "(automatic)",)
        _check_count("bottoms", len(bottoms), kind.bottom_count)
        _check_count("tops", len(tops), kind.top_count)
        for name in bottoms:
            self._check_bottom(name, index)
        shapes = tuple(self._plan.shapes[name] for name in bottoms)
        layer = kind(description, shapes)
        self._share_blobs(description, layer)
        top_shapes = _top_shapes(layer, shapes, len(tops))
        self._unread.difference_update(bottoms)
        for name, shape in zip(tops, top_shapes, strict=True):
            self._make(name, shape, in_place=name in bottoms)
        self._plan.steps.append(
            Step(
                name=description.name,
                layer=layer,
                bottoms=bottoms,
                tops=tops,
                detached=_detached(description, len(bottoms)),
                weights=_loss_weights(description, kind, len(tops)),
                description=description,
                bottom_shapes=shapes,
                top_shapes=top_shapes,
                run=layer,
            )
        )

    def _check_bottom(self, name: str, index: int) -> None:
        if name in self._plan.shapes:
            return
        later = [
            self._spec.place(at)
            for at, layer in enumerate(self._spec.parameters.layer)
            if at >= index and name in layer.top
        ]
        if later:
            raise NetError(f"it reads blob {name!r}, which is made only by {later[0]}: a cycle, or a wrong order")
        close = difflib.get_close_matches(name, self._plan.shapes, n=1)
        raise NetError(
            f"it reads blob {name!r}, which no layer before it makes: "
            + (f"did you mean {close[0]!r}?" if close else f"there are {', '.join(self._plan.shapes) or 'none'}")
        )

    def _make(self, name: str, shape: Shape, *, in_place: bool = False) -> None:
        if name in self._plan.shapes and not in_place:
            raise NetError(f"its top {name!r} is made by a layer before it; give one of them another name")
        self._plan.shapes[name] = shape
        self._unread.add(name)

    def _share_blobs(self, description: LayerParameter, layer: Layer) -> None:
        """Enter the layer's blobs into `learnable`; those with a name that is known become the known tensor."""
        names = layer.blob_names
        if len(description.param) > len(names):
            raise NetError(f"it has {len(description.param)} param entries and {len(names)} blobs")
        for place, attribute in enumerate(names):
            given = description.param[place] if place < len(description.param) else None
            tensor = getattr(layer, attribute)
            if given is not None and given.name and given.name in self._shared:
                self._join(given.name, given, layer, attribute)
                continue
            rate = given.lr_mult if given is not None else 1.0
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(rate != 0 or self._spec.parameters.force_backward)
            else:
                rate = 0.0  # BatchNorm's blobs: the layer moves them itself, the solver never does
            learnable = Learnable(
                name=f"{description.name}/{place}",
                layer=layer,
                attribute=attribute,
                lr_mult=rate,
                decay_mult=given.decay_mult if given is not None else 1.0,
            )
            if given is not None and given.name:
                self._shared[given.name] = learnable, len(self._plan.learnable)
            self._plan.learnable.append(learnable)

    def _join(self, name: str, given: ParamSpec, layer: Layer, attribute: str) -> None:
        owner, place = self._shared[name]
        own = getattr(layer, attribute)
        if owner.tensor.shape != own.shape:
            raise NetError(
                f"it shares parameter {name!r} with {owner.name}, whose shape is {tuple(owner.tensor.shape)}; "
                f"its own would be {tuple(own.shape)}: shared parameters must be of one shape"
            )
        setattr(layer, attribute, owner.tensor)
        joined = _joined(name, owner, given)
        owner.tensor.requires_grad_(joined.lr_mult != 0 or self._spec.parameters.force_backward)
        self._shared[name] = joined, place
        self._plan.learnable[place] = joined


def _joined(name: str, owner: Learnable, given: ParamSpec) -> Learnable:
    """The owner with the multipliers that a later layer gives; they must not contradict each other."""

    def agreed(key: Literal["lr_mult", "decay_mult"], known: float) -> float:
        value: float = getattr(given, key)
        if not given.HasField(key) or value == known:
            return known
        if known != 1.0:
            raise NetError(
                f"it gives the shared parameter {name!r} {key} {value:g}, and {owner.name} gives it {known:g}; "
                "they must agree"
            )
        return value

    return Learnable(
        name=owner.name,
        layer=owner.layer,
        attribute=owner.attribute,
        lr_mult=agreed("lr_mult", owner.lr_mult),
        decay_mult=agreed("decay_mult", owner.decay_mult),
    )


def _check_count(what: str, found: int, allowed: tuple[int, int | None]) -> None:
    least, most = allowed
    if found < least or (most is not None and found > most):
        rule = f"exactly {least}" if least == most else f"at least {least}"
        if most is not None and most != least:
            rule = f"{least} to {most}"
        raise NetError(f"it has {found} {what}; a layer of this type has {rule}")


def _detached(description: LayerParameter, count: int) -> tuple[bool, ...]:
    given = description.propagate_down
    if given and len(given) != count:
        raise NetError(f"propagate_down has {len(given)} entries for {count} bottoms; give none or one for each")
    return tuple(not flag for flag in given) if given else (False,) * count


def _loss_weights(description: LayerParameter, kind: type[Layer], tops: int) -> tuple[float, ...]:
    given = tuple(description.loss_weight)
    if len(given) not in (0, tops):
        raise NetError(f"loss_weight has {len(given)} entries for {tops} tops; give none or one for each")
    default = (1.0 if kind.is_loss else 0.0,) + (0.0,) * (tops - 1)
    return given or default[:tops]


def _top_shapes(layer: Layer, bottoms: Sequence[Shape], tops: int) -> tuple[Shape, ...]:
    """Shapes of the tops, by a pass over tensors without memory."""
    ghosts = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]
    }
    inputs = tuple(torch.empty(shape, device="meta") for shape in bottoms)
    try:
        with torch.no_grad():
            found = functional_call(layer, ghosts, inputs)
    except (RuntimeError, IndexError, ValueError) as error:
        reason = " ".join(str(error).split())
        shapes = ", ".join(str(shape) for shape in bottoms)
        raise NetError(f"bottoms of shapes {shapes} do not fit it: {reason}") from error
    results = found if isinstance(found, tuple) else (found,)
    return tuple(tuple(result.shape) for result in results)[:tops]
