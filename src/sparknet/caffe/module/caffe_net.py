"""A Caffe net as a torch module: blobs by name in, blobs by name out."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sparknet.caffe.description.spec import NetSpec, PhaseName
from sparknet.caffe.layers import InputBlob, Layer, Shape
from sparknet.caffe.module.build import build
from sparknet.caffe.module.net_plan import Learnable, Step
from sparknet.caffe.schema import TRAIN, LayerParameter
from sparknet.caffe.weights.trained import Frame, Loaded, load_weights, write_weights
from sparknet.errors import NetError

__all__ = ["CaffeNet"]

T = TypeVar("T")


class CaffeNet(nn.Module):
    """One state (phase, level, stages) of a net.

    The phase decides which layers there are. How they behave (Dropout, BatchNorm) follows `training`, as in any
    module: a net of phase TRAIN starts in training mode, one of phase TEST in evaluation mode.

    Children carry the layers' names, so that `state_dict()` reads `conv1.weight`; a dot in a name becomes `_`,
    and a name that this class has itself (`loss`) gets a number.

    Args:
        spec: the description, of all states.
        phase: TRAIN or TEST.
        level: what `min_level` and `max_level` of the layers' rules are held against.
        stages: what their `stage` and `not_stage` are.
        input_shapes: shapes, with the batch axis, of inputs for which the file gives none (databases) or
            another one.

    Attributes:
        description: the description of all states.
        spec: that of this state.
        phase: TRAIN or TEST.
        inputs: what must be given, by blob name.
        outputs: names of the blobs that no layer reads.
        shapes: every blob's shape for the batch size of the file.
        steps: the layers at work, in order.
        learnable: what a solver updates, in Caffe's order.
        frame: what the weight file said that is wholly of this net and was loaded last.

    Raises:
        NetError: the description is not a net; the message names file, line, layer, expected and found.
    """

    def __init__(
        self,
        spec: NetSpec,
        phase: PhaseName = "TRAIN",
        *,
        level: int = 0,
        stages: Sequence[str] = (),
        input_shapes: Mapping[str, Shape] | None = None,
    ) -> None:
        super().__init__()
        if phase not in ("TRAIN", "TEST"):
            raise NetError(f"phase is {phase!r}; it must be TRAIN or TEST")
        self.description = spec
        self.spec = spec.select(phase, level=level, stages=stages)
        self.phase: PhaseName = phase
        plan = build(self.spec, input_shapes)
        self.inputs: dict[str, InputBlob] = plan.inputs
        self.outputs = plan.outputs
        self.shapes = plan.shapes
        self.steps: list[Step] = plan.steps
        self.learnable: list[Learnable] = plan.learnable
        self._result_names, self._results = _results(plan.steps)
        self.frame: Frame | None = None
        self._ties: list[tuple[Layer, str, Layer]] = []
        """Buffers that are another net's: whose, under which name, and that net's layer."""
        # Tells the net's dtype, also where there are no parameters.
        self._like: Tensor
        self.register_buffer("_like", torch.empty(0), persistent=False)
        for step in plan.steps:
            self.add_module(self._free_name(step.name), step.layer)
        # The phase says how it begins; then `train` and `eval` rule, as in any module.
        self.train(phase == "TRAIN")

    @classmethod
    def from_prototxt(
        cls,
        path_or_text: str | os.PathLike[str],
        phase: PhaseName = "TEST",
        level: int = 0,
        stages: Sequence[str] = (),
        *,
        input_shapes: Mapping[str, Shape] | None = None,
    ) -> "CaffeNet":
        """Build from a prototxt file, or from its text; see the class for the arguments.

        Raises:
            NetError: the file is missing, or is not a net.
        """
        spec = NetSpec.from_prototxt(path_or_text)
        return cls(spec, phase, level=level, stages=stages, input_shapes=input_shapes)

    def forward(self, inputs: Mapping[str, Tensor], blobs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Run the whole net.

        Args:
            inputs: a tensor for each of `self.inputs`, of the shape there but for the batch; brought to the net's
                dtype. Labels are whole numbers of any dtype. Others are not looked at.
            blobs: names of the blobs to return, as they stand after the whole pass; not given: the net's outputs
                (and blobs with a loss weight, where a layer reads them).

        Raises:
            NetError: an input is missing or does not fit, or there is no such blob.
        """
        values = self._given(inputs)
        kept: dict[str, Tensor] = {}
        for at, step in enumerate(self.steps):
            bottoms = [
                values[name].detach() if cut else values[name]
                for name, cut in zip(step.bottoms, step.detached, strict=True)
            ]
            # a layer may make more tops than the file asks for
            for name, weight, top in zip(step.tops, step.weights, _run(step, bottoms), strict=False):
                # A layer in place gives its blob a new value: whoever reads the name later sees that one.
                values[name] = top
                # Given back although a later layer may read it, or overwrite it: `loss` needs it as it was.
                if weight:
                    kept[self._result_names[at, name]] = top
        if blobs is not None:
            return {name: self._blob(values, name) for name in blobs}
        return {name: values[name] for name in self.outputs} | kept

    def forward_blobs(self, inputs: Mapping[str, Tensor], blobs: Sequence[str]) -> dict[str, Tensor]:
        """Run the whole net and return the named blobs, as they stand after the pass."""
        return self(inputs, blobs)

    def reset(self) -> None:
        """Have recurrent layers begin the next pass from zeros, and not where the last one ended."""
        for step in self.steps:
            step.layer.reset()

    def loss(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the losses, a scalar, from what `forward` returned.

        Raises:
            NetError: no top of this net has a loss weight, or `outputs` lacks one.
        """
        if not self._results:
            raise NetError(
                f"{self.spec.source}: no top of phase {self.phase} has a loss weight: add a loss layer, or a "
                "loss_weight to another"
            )
        missing = [name for name in self._results if name not in outputs]
        if missing:
            raise NetError(
                f"{self.spec.source}: outputs lack {', '.join(missing)}; give what this net's forward returned"
            )
        return torch.stack([outputs[name].sum() * weight for name, weight in self._results.items()]).sum()

    def weights(self) -> dict[str, list[Tensor]]:
        """The learned tensors by layer name, live, in Caffe's order; a shared one appears in each layer.

        Of several layers of one name the first is there, which is the one that takes them from a file.
        """
        return _by_name((layer.name, blobs) for layer, blobs in self.layer_blobs() if blobs)

    def layer_blobs(self) -> list[tuple[LayerParameter, list[Tensor]]]:
        """Of each layer that computes, in order, its description and its learned tensors, live."""
        return [(step.description, step.layer.blobs()) for step in self.steps]

    def set_weights(self, weights: Mapping[str, Sequence[Tensor | np.ndarray]]) -> None:
        """Copy values into the layers of the same names; layers not named keep theirs, names not here are ignored.

        Legacy shapes of four numbers fit where they agree but for leading ones.

        Raises:
            NetError: the number of blobs or a shape differs.
        """
        # Everything is checked before anything is copied: a net that took half of a file would be of no use.
        own = {name: blobs for name, blobs in self.weights().items() if name in weights}
        for name, blobs in own.items():
            if len(weights[name]) != len(blobs):
                raise NetError(f"layer {name!r} has {len(blobs)} blobs; {len(weights[name])} were given")
            for place, (blob, value) in enumerate(zip(blobs, weights[name], strict=True)):
                _check_shape(f"layer {name!r}, blob {place}", tuple(blob.shape), tuple(value.shape))
        with torch.no_grad():
            for name, blobs in own.items():  # in the net's order: of a shared blob the last layer's values stay
                for blob, value in zip(blobs, weights[name], strict=True):
                    _copy(value, blob)

    def load_weights(self, path: str | os.PathLike[str]) -> Loaded:
        """Copy the blobs of a `.caffemodel` or `.caffemodel.h5` into the layers of the same names.

        Layers that the file lacks keep theirs, layers that the net lacks are ignored. Legacy shapes of four numbers
        fit where they agree but for leading ones. Where the file is wholly of this net, `save_weights` gives its
        bytes back, whatever phase and state this net is in.

        Returns:
            Which layers took blobs, which did not, and which the file has besides.

        Raises:
            NetError: the file is missing or damaged, or does not fit: the message names layer, blob, expected and
                found. The net is then as it was.
        """
        return load_weights(self, path)

    def save_weights(self, path: str | os.PathLike[str], *, as_loaded: bool = True) -> None:
        """Write the weights as Caffe does, whole or not at all: as HDF5 where the name ends in `.h5`.

        Args:
            path: the file; its folder must exist.
            as_loaded: with the description of the file that was loaded, where that is wholly of this net. False: in
                any case with that of this state, as Caffe writes its snapshots.

        Raises:
            NetError: the file cannot be written, or a binary one would be larger than 2 GiB.
        """
        write_weights(self, path, as_loaded=as_loaded)

    def share_weights(self, other: "CaffeNet") -> None:
        """Use the tensors of another net for the layers of the same names, as a test net does its training net's.

        Raises:
            NetError: the number of blobs or a shape differs.
        """
        theirs = {step.name: step.layer for step in other.steps if step.layer.blob_names}
        own = _by_name((step.name, step) for step in self.steps if step.layer.blob_names)
        for step in own.values():
            owner = theirs.get(step.name)
            # net.cpp, ShareTrainedLayersWith: by name, the last of theirs with the first of ours, and what only one
            # of the nets has is passed over.
            if owner is None:
                continue
            if step.layer.blob_names != owner.blob_names:
                raise NetError(f"layer {step.name!r} has other blobs in the two nets")
            for name in step.layer.blob_names:
                tensor = getattr(owner, name)
                _check_shape(f"layer {step.name!r}", tuple(getattr(step.layer, name).shape), tuple(tensor.shape))
                if name in owner.views:
                    step.layer.views[name] = owner.views[name]
                    continue
                setattr(step.layer, name, tensor)
                if not isinstance(tensor, nn.Parameter):
                    # a change of dtype leaves `other` its parameters, but gives it new buffers
                    self._ties.append((step.layer, name, owner))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all layers but those whose description gives them a phase of their own."""
        # As in Caffe, where a layer with a phase of its own keeps it in a net of the other phase.
        super().train(mode)
        for step in self.steps:
            if step.description.HasField("phase"):
                step.layer.train(step.description.phase == TRAIN)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Change dtype or device; a tensor that several layers share stays one tensor."""
        done: dict[int, tuple[Tensor, Tensor]] = {}

        def once(tensor: Tensor) -> Tensor:
            if id(tensor) not in done:
                done[id(tensor)] = tensor, fn(tensor)  # with the tensor itself, or its id may come again
            return done[id(tensor)][1]

        # torch goes from module to module, and would make two of one buffer that two layers share.
        return super()._apply(once, recurse)

    def _free_name(self, name: str) -> str:
        """A name for a layer among this module's attributes: its own, where that is free and torch allows it."""
        key = plain = (name or "layer").replace(".", "_")
        number = 2
        # Nets have layers named `loss`, which is a method here, and torch allows no dot in a name.
        while hasattr(self, key):
            key, number = f"{plain}_{number}", number + 1
        return key

    def _given(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            raise NetError(
                f"{self.spec.source}: inputs {', '.join(missing)} are missing; "
                f"the net needs {', '.join(self.inputs)}"
            )
        # Looked at in each pass, for `other` does not know who shares with it.
        for layer, name, owner in self._ties:
            if getattr(layer, name) is not getattr(owner, name):
                setattr(layer, name, getattr(owner, name))
        return {name: self._checked(name, inputs[name]) for name in self.inputs}

    def _checked(self, name: str, value: Tensor) -> Tensor:
        try:
            # Labels too: Caffe's blobs hold everything as floats, and the layers that look labels up cast them
            # back.
            tensor = torch.as_tensor(value).to(self._like)
        except (TypeError, ValueError, RuntimeError) as error:
            raise NetError(
                f"{self.spec.source}: input {name!r} is a {type(value).__name__}; it must be a tensor or an "
                f"array of numbers: {error}"
            ) from error
        shape, found = self.shapes[name], tuple(tensor.shape)
        # Batch and sides may change from pass to pass; an image's axes and channels never do.
        if len(shape) > 2 and (len(found) != len(shape) or found[1] != shape[1]):
            raise NetError(
                f"{self.spec.source}: input {name!r} has shape {found}; expected {shape}, of which the batch "
                "and the sides may differ"
            )
        return tensor

    def _blob(self, values: Mapping[str, Tensor], name: str) -> Tensor:
        if name not in values:
            raise NetError(f"{self.spec.source}: there is no blob {name!r}; there are {', '.join(values)}")
        return values[name]


def _by_name(named: Iterable[tuple[str, T]]) -> dict[str, T]:
    """What comes first of each name, in order."""
    found: dict[str, T] = {}
    for name, value in named:
        found.setdefault(name, value)
    return found


def _run(step: Step, bottoms: Sequence[Tensor]) -> tuple[Tensor, ...]:
    try:
        tops = step.run(*bottoms)
        return tops if isinstance(tops, tuple) else (tops,)
    except NetError as error:
        raise NetError(f"layer {step.name!r} ({step.description.type}): {error}") from error
    # torch speaks of its kernels; who wrote the net knows layers and shapes.
    except (RuntimeError, IndexError, ValueError, ArithmeticError) as error:
        place = f"layer {step.name!r} ({step.description.type})"
        reason = " ".join(str(error).split())
        shapes = [tuple(bottom.shape) for bottom in bottoms]
        if shapes == list(step.bottom_shapes):
            raise NetError(f"{place}: {reason}") from error  # not a matter of shapes
        raise NetError(
            f"{place}: expected bottoms of shapes {', '.join(map(str, step.bottom_shapes))} but for the batch, got "
            f"{', '.join(map(str, shapes))}: {reason}"
        ) from error


def _results(steps: Sequence[Step]) -> tuple[dict[tuple[int, str], str], dict[str, float]]:
    """Names under which `forward` returns what counts in the loss: by layer and top, and the weight of each."""
    last_maker = {name: at for at, step in enumerate(steps) for name in step.tops}
    names: dict[tuple[int, str], str] = {}
    found: dict[str, float] = {}
    for at, step in enumerate(steps):
        for name, weight in zip(step.tops, step.weights, strict=True):
            if weight:
                # a later layer overwrote it: the loss is of what it was before
                key = name if last_maker[name] == at else f"{name} of {step.name}"
                # layers may share their names too
                if key in found or (key != name and key in last_maker):
                    key = f"{name} of layer {at}"
                names[at, name] = key
                found[key] = weight
    return names, found


def _copy(value: Tensor | np.ndarray, blob: Tensor) -> None:
    """Copy numbers into a blob; by numpy where it can, for arrays from files are read-only and lie anywhere."""
    if isinstance(value, Tensor):
        blob.copy_(value.reshape(blob.shape))
    elif blob.device.type == "cpu" and blob.dtype in (torch.float32, torch.float64):
        np.copyto(blob.detach().numpy(), value.reshape(blob.shape), casting="same_kind")
    else:
        blob.copy_(torch.tensor(np.require(value, requirements="A")).reshape(blob.shape))


def _check_shape(where: str, expected: Shape, found: Shape) -> None:
    """Whether shapes agree, legacy ones of four numbers but for leading ones."""
    # blob.cpp, ShapeEquals: files before 2015 give every blob four axes, the missing ones in front as 1.
    if found != expected and not (
        len(found) == 4 and len(expected) < 4 and found == (1,) * (4 - len(expected)) + expected
    ):
        raise NetError(f"{where}: expected shape {expected}, got {found}; the net must be that of the weights")
