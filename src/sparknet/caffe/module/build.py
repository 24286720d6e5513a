"""From a net's description to its layers, in order, with every blob's shape known.

Layers are built one after the other, as the file lists them. The shapes of a layer's tops are found by running it
over tensors without memory, so that no layer's arithmetic is written down twice.
"""

import difflib
import logging
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.func import functional_call

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.layers import INPUT_LAYERS, LAYERS, Layer, Shape, input_blobs
from sparknet.caffe.layers.blob_limits import check_blob_shape
from sparknet.caffe.layers.python import Python
from sparknet.caffe.module.fusion import take_shortcuts
from sparknet.caffe.module.net_plan import BuildPlan, Learnable, Step
from sparknet.caffe.prototxt.fork_layers import about_type
from sparknet.caffe.schema import TRAIN, LayerParameter, ParamSpec
from sparknet.errors import NetError

__all__ = ["build"]

_log = logging.getLogger(__name__)


def build(spec: NetSpec, input_shapes: Mapping[str, Shape] | None = None) -> BuildPlan:
    """Build the layers of one state of a net, filled from torch's default generator.

    Args:
        spec: what `NetSpec.select` left.
        input_shapes: shapes with the batch axis; they win over those in the file.

    Raises:
        NetError: the description is not a net: the message names layer, line, expected and found.
    """
    _check_types(spec)
    spec.check_python_layers()
    builder = _Builder(spec, dict(input_shapes or {}))
    for index in range(len(spec.parameters.layer)):
        builder.add(index)
    return builder.finish()


def _check_types(spec: NetSpec) -> None:
    # All of them in one error: who brings a net from elsewhere wants the whole list before deciding anything.
    known = [*LAYERS, *INPUT_LAYERS]
    faults: list[str] = []
    for index, layer in enumerate(spec.parameters.layer):
        if layer.type not in known:
            about = about_type(layer.type)
            close = difflib.get_close_matches(layer.type, known, n=1)
            hint = f", {about}" if about else f", did you mean {close[0]}?" if close else ""
            faults.append(spec.place(index) + hint)
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
        self._plan = BuildPlan()
        self._unread: set[str] = set()
        self._shared: dict[str, tuple[int, ParamSpec]] = {}
        """Blobs with a name of their own: their place in `learnable`, and what the layers so far say of them."""
        self._owners: set[str] = set()
        """Names of layers with blobs."""

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

    def finish(self) -> BuildPlan:
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
                    f"input_shapes={{{blob.name!r}: (batch, channels, height, width)}}, or on the command line "
                    f"--shape {blob.name}=N,C,H,W"
                )
            if any(size < 1 for size in shape):
                raise NetError(f"blob {blob.name!r} has shape {tuple(shape)}; every size must be at least 1")
            if any(description.loss_weight):
                raise NetError("it has a loss_weight; what is given to the net is no loss: take it out")
            self._make(blob.name, tuple(shape))
            self._plan.inputs[blob.name] = blob

    def _add_layer(self, index: int, description: LayerParameter) -> None:
        kind = LAYERS[description.type]
        bottoms, tops = tuple(description.bottom), tuple(description.top)
        if kind.is_loss and not tops:
            # one each, as in Caffe, where these tops share this name but are never looked up by it
            free = ("(automatic)", f"(automatic) of {description.name}", f"(automatic) of layer {index}")
            tops = (next(name for name in free if name not in self._plan.shapes),)
        _check_count("bottoms", len(bottoms), kind.bottom_count)
        _check_count("tops", len(tops), kind.top_count)
        for name in bottoms:
            self._check_bottom(name, index)
        shapes = tuple(self._plan.shapes[name] for name in bottoms)
        training = self._is_training(description)
        layer = _make_layer(kind, description, shapes, training=training, path=self._spec.python_path or ())
        # Before blobs are shared: a view of another layer's blob is not among those that this pass replaces.
        top_shapes = _top_shapes(layer, shapes, len(tops))
        self._share_blobs(description, layer, self._spec.place(index))
        self._unread.difference_update(bottoms)
        overwritten = [name for name, bottom in zip(tops, bottoms, strict=False) if name == bottom]
        if overwritten:
            _check_in_place(layer, overwritten[0], self._spec.place(index))
        for place, (name, shape) in enumerate(zip(tops, top_shapes, strict=True)):
            # net.cpp, AppendTop: a top may have the name of a blob that exists if the bottom at the same place is
            # that blob. Anything else would be a blob of two makers.
            in_place = bottoms[place : place + 1] == (name,) and name not in tops[:place]
            self._make(name, shape, in_place=in_place, is_output=bool(description.top))
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
        # Caffe says "Unknown bottom blob" of all three: a cycle, a wrong order, a misspelt name.
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

    def _is_training(self, description: LayerParameter) -> bool:
        return (description if description.HasField("phase") else self._spec.parameters.state).phase == TRAIN

    def _make(self, name: str, shape: Shape, *, in_place: bool = False, is_output: bool = True) -> None:
        if name in self._plan.shapes and not in_place:
            raise NetError(
                f"its top {name!r} is made before; give one of the two another name (a layer in place has its "
                "bottom and its top of that name at the same position)"
            )
        try:
            check_blob_shape(shape)
        except NetError as error:
            raise NetError(f"blob {name!r}: {error}") from error
        self._plan.shapes[name] = shape
        if is_output:
            self._unread.add(name)

    def _share_blobs(self, description: LayerParameter, layer: Layer, where: str) -> None:
        """Enter the layer's blobs into `learnable`; those with a name that is known become the known tensor."""
        names = layer.blob_names
        if len(description.param) > len(names):
            raise NetError(f"it has {len(description.param)} param entries and {len(names)} blobs")
        # CopyTrainedLayersFrom and ShareTrainedLayersWith look for a name from the front, and so do we.
        if names and description.name in self._owners:
            _log.warning(
                "%s: a layer before it has the same name, and both have blobs: of weight files and in test nets "
                "only the first gets any, as in Caffe, and this one begins as it is filled: rename one",
                where,
            )
        if names:
            self._owners.add(description.name)
        for place, attribute in enumerate(names):
            given = description.param[place] if place < len(description.param) else ParamSpec()
            if given.name in self._shared:
                self._join(given, layer, attribute)
                continue
            if given.name:
                merged = ParamSpec()
                merged.CopyFrom(given)
                self._shared[given.name] = len(self._plan.learnable), merged
            self._plan.learnable.append(self._learnable(f"{description.name}/{place}", layer, attribute, given))

    def _learnable(self, name: str, layer: Layer, attribute: str, given: ParamSpec) -> Learnable:
        tensor = getattr(layer, attribute)
        # BatchNorm's blobs are buffers: the layer moves them itself, the solver never does
        rate = given.lr_mult if isinstance(tensor, nn.Parameter) else 0.0
        if isinstance(tensor, nn.Parameter):
            # net.cpp: lr_mult 0 spares the gradient (param_need_backward), unless all of them are wanted.
            tensor.requires_grad_(rate != 0 or self._spec.parameters.force_backward)
        return Learnable(name=name, layer=layer, attribute=attribute, lr_mult=rate, decay_mult=given.decay_mult)

    def _join(self, given: ParamSpec, layer: Layer, attribute: str) -> None:
        """Let a layer have the tensor of the layer that first named it."""
        place, merged = self._shared[given.name]
        owner = self._plan.learnable[place]
        own = getattr(layer, attribute)
        # net.cpp, AppendParam: it is the later layer whose share_mode counts.
        permissive = given.share_mode == ParamSpec.PERMISSIVE
        if owner.tensor.numel() != own.numel() or (owner.tensor.shape != own.shape and not permissive):
            raise NetError(
                f"it shares parameter {given.name!r} with {owner.name}, whose shape is "
                f"{tuple(owner.tensor.shape)}; its own would be {tuple(own.shape)}: the "
                + ("counts must be equal" if permissive else "shapes must be equal, or share_mode PERMISSIVE")
            )
        layer.share(attribute, owner.layer, owner.attribute)
        _merge(merged, given, owner.name)
        self._plan.learnable[place] = self._learnable(owner.name, owner.layer, owner.attribute, merged)


def _merge(merged: ParamSpec, given: ParamSpec, owner: str) -> None:
    """Add the multipliers that a later layer gives a shared parameter; they must not contradict each other."""
    for key in ("lr_mult", "decay_mult"):
        if not given.HasField(key):
            continue
        # net.cpp, AppendParam: silence agrees with anything, so a later layer may be the first to speak.
        known, value = getattr(merged, key), getattr(given, key)
        if merged.HasField(key) and known != value:
            raise NetError(
                f"it gives the shared parameter {given.name!r} {key} {value:g}, and the layers before it, from "
                f"{owner} on, give it {known:g}; they must agree"
            )
        setattr(merged, key, value)


def _make_layer(
    kind: type[Layer],
    description: LayerParameter,
    bottoms: tuple[Shape, ...],
    *,
    training: bool,
    path: Sequence[str],
) -> Layer:
    try:
        # The only ones that are told these: what others do does not depend on them before a pass.
        if issubclass(kind, Python):
            return kind(description, bottoms, training=training, path=path).train(training)
        return kind(description, bottoms).train(training)
    except (RuntimeError, MemoryError, OverflowError) as error:  # torch has no memory for its blobs
        reason = " ".join(str(error).split())
        raise NetError(f"its blobs cannot be made: {reason}; it must be smaller to fit this machine") from error


def _check_in_place(layer: Layer, blob: str, where: str) -> None:
    """Refuse in place what Caffe refuses so, and tell where it computes something else."""
    remedy = "give its top another name"
    if layer.caffe_in_place == "refused":
        raise NetError(f"its top is its bottom {blob!r}; Caffe computes no such layer in place: {remedy}")
    if layer.caffe_in_place == "gradient" and layer.training:
        _log.warning(
            "%s: its top is its bottom %r; in place Caffe takes the gradient from what it has overwritten, here "
            "it is that of a top of its own: %s, and both are alike",
            where,
            blob,
            remedy,
        )
    elif layer.caffe_in_place == "values":
        _log.warning(
            "%s: its top is its bottom %r; in place Caffe overwrites what it still reads, and here the top has the "
            "values of one of its own: %s, and both are alike",
            where,
            blob,
            remedy,
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
    # layer.hpp, SetLossWeights, and loss_layer.cpp: the first top of a loss counts unless the file says
    # otherwise.
    default = (1.0 if kind.is_loss else 0.0,) + (0.0,) * (tops - 1)
    return given or default[:tops]


def _top_shapes(layer: Layer, bottoms: Sequence[Shape], tops: int) -> tuple[Shape, ...]:
    """Shapes of the tops, by a pass over tensors without memory."""
    known = layer.top_shapes()
    if known is not None:
        return known[:tops]
    # The layer keeps its blobs; functional_call lends it these for one pass. Nothing is computed, so a net of any
    # size is planned at once, and `forward` must never look at values, which torch.export wants anyway.
    ghosts = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]
    }
    try:
        inputs = tuple(torch.empty(shape, device="meta") for shape in bottoms)
        with torch.no_grad():
            found = functional_call(layer, ghosts, inputs)
    except (RuntimeError, IndexError, ValueError, ArithmeticError, MemoryError) as error:
        reason = " ".join(str(error).split())
        shapes = ", ".join(str(shape) for shape in bottoms)
        raise NetError(f"bottoms of shapes {shapes} do not fit it: {reason}") from error
    # A layer may give more tops than the file names.
    results = found if isinstance(found, tuple) else (found,)
    return tuple(tuple(result.shape) for result in results)[:tops]
