"""Older generations of Caffe's net and solver files, brought to the form of Caffe 1.0.

The steps and their order are those of Caffe (upgrade_proto.cpp: UpgradeNetAsNeeded, UpgradeSolverAsNeeded):

    V0 (2013, `layers { layer { type: "conv" } }`) -> V1 (2014, `layers { type: CONVOLUTION }`)
    -> scale, mean_file, crop_size, mirror of V1 data layers into transform_param
    -> V2 (since 2015, `layer { type: "Convolution" }`) -> `input` fields into an Input layer
    -> the three statistics of a BatchNorm layer get the multipliers 0

Where Caffe logs what it cannot place and goes on without it, so does this, as a warning of Python's `logging`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from sparknet.caffe.description.upgrade_v0 import put, upgrade_v0
from sparknet.caffe.schema import LayerParameter, NetParameter, SolverParameter, V1LayerParameter
from sparknet.caffe.schema.strings import readable_strings
from sparknet.errors import NetError

__all__ = ["Origin", "Upgrade", "upgrade_net", "upgrade_solver"]

_log = logging.getLogger(__name__)

Origin = tuple[str, int] | None
"""The field and index that a layer had in the message it came from; None for a layer that no field stands for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Upgrade:
    """A net in the modern form."""

    net: NetParameter
    """A message of its own, with `layer` and neither `layers` nor `input`."""
    origins: tuple[Origin, ...]
    """Where each layer came from: ("layers", 4), or None for the Input layer made of the `input` fields."""


def upgrade_net(
    net: NetParameter, *, source: str = "", lines: Mapping[tuple[str, int], int] | None = None
) -> Upgrade:
    """Return a net of any generation in the form of Caffe 1.0; blobs go with their layers, shapes as they are.

    `input` without shapes names the inputs of an old weights file and is dropped, as Caffe does.

    Args:
        net: the net; it is not changed.
        source: the file's name, for errors.
        lines: where its layers stand, for errors (`Parsed.lines`).

    Raises:
        NetError: the file mixes V0 and V1, a legacy layer has a type that Caffe did not know, or a binary file
            lacks a required field.
    """
    net = readable_strings(net)
    _check_damage(net, f"{source}: " if source else "")
    modern = NetParameter()
    modern.CopyFrom(net)
    origins: list[Origin] = [("layer", index) for index in range(len(net.layer))]
    if net.layers:
        modern.ClearField("layers")
        modern.ClearField("layer")
        kept = _modern_layers(net, source, lines or {})
        modern.layer.extend(layer for _, layer in kept)
        origins = [("layers", index) for index, _ in kept]
    # In front of all others, as Caffe's: an Input layer that stood last would come too late for its readers.
    if net.input and (net.input_shape or net.input_dim):
        layers = [_input_layer(net, f"{source}: " if source else ""), *modern.layer]
        modern.ClearField("layer")
        modern.layer.extend(layers)
        origins.insert(0, None)
    for name in ("input", "input_shape", "input_dim"):
        modern.ClearField(name)
    # Last: it looks at `param`, which the step from V1 makes of four lists.
    for layer in modern.layer:
        _freeze_statistics(layer)
    return Upgrade(net=modern, origins=tuple(origins))


def upgrade_solver(solver: SolverParameter) -> SolverParameter:
    """Return a solver whose old `solver_type` has become `type`; nets inside it stay as they are.

    Raises:
        NetError: both are given.
    """
    modern = SolverParameter()
    modern.CopyFrom(solver)
    if solver.HasField("solver_type"):
        name = _SOLVER_TYPES[solver.solver_type]
        # UpgradeSolverType refuses both at once too.
        if solver.HasField("type"):
            raise NetError(
                f"the solver has type {solver.type!r} and solver_type {name.upper()}; "
                f"solver_type is the old name of type: remove it"
            )
        modern.type = name
        modern.ClearField("solver_type")
    return modern


def _check_damage(message: Message, file: str) -> None:
    """Refuse what protobuf lets pass in a binary file, to raise where it is written: a missing required field."""
    name = message.DESCRIPTOR.name
    for field in message.DESCRIPTOR.fields if not message.IsInitialized() else ():
        if field.is_required and not message.HasField(field.name):
            raise NetError(f"{file}a {name} lacks {field.name}, which Caffe requires: the file is damaged")
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                _check_damage(inner, file)


def _modern_layers(
    net: NetParameter, source: str, lines: Mapping[tuple[str, int], int]
) -> list[tuple[int, LayerParameter]]:
    """Return the `layers` in the modern form, with their indices."""

    def place(index: int) -> str:
        line = lines.get(("layers", index))
        file = f"{source}:{line}: " if line else f"{source}: " if source else ""
        old = net.layers[index]
        return f"{file}layers number {index}, {old.layer.name or old.name!r},"

    # UpgradeV1Net: "already specifies 'layer' fields; these will be ignored".
    if net.layer:
        _log.warning(
            "%s is in the old notation and %d `layer` are in the new one, which are passed over, as in Caffe: "
            "write all of them as `layer`",
            place(0),
            len(net.layer),
        )
    # One layer of V0 makes a net of V0, as in Caffe (NetNeedsV0ToV1Upgrade); `upgrade_v0` then refuses the
    # others.
    if any(layer.HasField("layer") for layer in net.layers):
        older = upgrade_v0(net, place)
    else:
        older = [(index, V1LayerParameter()) for index in range(len(net.layers))]
        for index, layer in older:
            layer.CopyFrom(net.layers[index])
    for _, layer in older:
        _move_transformation(layer)
    return [(index, _from_v1(layer)) for index, layer in older]


_SOLVER_TYPES = {
    SolverParameter.SGD: "SGD",
    SolverParameter.NESTEROV: "Nesterov",
    SolverParameter.ADAGRAD: "AdaGrad",
    SolverParameter.RMSPROP: "RMSProp",
    SolverParameter.ADADELTA: "AdaDelta",
    SolverParameter.ADAM: "Adam",
}

_V1 = V1LayerParameter
_V1_TYPES = {
    _V1.ABSVAL: "AbsVal",
    _V1.ACCURACY: "Accuracy",
    _V1.ARGMAX: "ArgMax",
    _V1.BNLL: "BNLL",
    _V1.CONCAT: "Concat",
    _V1.CONTRASTIVE_LOSS: "ContrastiveLoss",
    _V1.CONVOLUTION: "Convolution",
    _V1.DATA: "Data",
    _V1.DECONVOLUTION: "Deconvolution",
    _V1.DROPOUT: "Dropout",
    _V1.DUMMY_DATA: "DummyData",
    _V1.ELTWISE: "Eltwise",
    _V1.EUCLIDEAN_LOSS: "EuclideanLoss",
    _V1.EXP: "Exp",
    _V1.FLATTEN: "Flatten",
    _V1.HDF5_DATA: "HDF5Data",
    _V1.HDF5_OUTPUT: "HDF5Output",
    _V1.HINGE_LOSS: "HingeLoss",
    _V1.IM2COL: "Im2col",
    _V1.IMAGE_DATA: "ImageData",
    _V1.INFOGAIN_LOSS: "InfogainLoss",
    _V1.INNER_PRODUCT: "InnerProduct",
    _V1.LRN: "LRN",
    _V1.MEMORY_DATA: "MemoryData",
    _V1.MULTINOMIAL_LOGISTIC_LOSS: "MultinomialLogisticLoss",
    _V1.MVN: "MVN",
    _V1.NONE: "",
    _V1.POOLING: "Pooling",
    _V1.POWER: "Power",
    _V1.RELU: "ReLU",
    _V1.SIGMOID: "Sigmoid",
    _V1.SIGMOID_CROSS_ENTROPY_LOSS: "SigmoidCrossEntropyLoss",
    _V1.SILENCE: "Silence",
    _V1.SLICE: "Slice",
    _V1.SOFTMAX: "Softmax",
    _V1.SOFTMAX_LOSS: "SoftmaxWithLoss",
    _V1.SPLIT: "Split",
    _V1.TANH: "TanH",
    _V1.THRESHOLD: "Threshold",
    _V1.WINDOW_DATA: "WindowData",
}


def _from_v1(old: V1LayerParameter) -> LayerParameter:
    """Return a V1 layer as a modern one."""
    layer = LayerParameter()
    # By name: a test holds that every other field of V1 has a place of the same name and type.
    for field, value in old.ListFields():
        if field.name not in ("type", "param", "blob_share_mode", "blobs_lr", "weight_decay"):
            put(layer, field.name, value)
    if old.HasField("type"):
        layer.type = _V1_TYPES[old.type]
    # Four parallel lists become one list of messages, as long as the longest.
    for name, values in (
        ("name", old.param),
        ("share_mode", old.blob_share_mode),
        ("lr_mult", old.blobs_lr),
        ("decay_mult", old.weight_decay),
    ):
        for index, value in enumerate(values):
            if index == len(layer.param):
                layer.param.add()
            setattr(layer.param[index], name, value)
    return layer


_WITH_TRANSFORMATION = {
    _V1.DATA: "data_param",
    _V1.IMAGE_DATA: "image_data_param",
    _V1.WINDOW_DATA: "window_data_param",
}


def _move_transformation(layer: V1LayerParameter) -> None:
    """Move what a data layer said of its images into `transform_param`."""
    # By type, as UpgradeNetDataTransformation: a data_param in any other layer is dead text and stays so.
    holder = _WITH_TRANSFORMATION.get(layer.type)
    if holder is None or not layer.HasField(holder):
        return
    old = getattr(layer, holder)
    for name in ("scale", "mean_file", "crop_size", "mirror"):
        if old.HasField(name):
            setattr(layer.transform_param, name, getattr(old, name))
            old.ClearField(name)


def _input_layer(net: NetParameter, file: str) -> LayerParameter:
    """Return the layer that Caffe makes of the net's `input` fields; `file` begins an error."""
    count = len(net.input)
    layer = LayerParameter(name="input", type="Input", top=net.input)
    if net.input_shape and net.input_dim:
        raise NetError(f"{file}the net has input_shape and input_dim, which say the same: remove input_dim")
    if net.input_shape:
        if len(net.input_shape) != count:
            raise NetError(
                f"{file}the net has {count} input and {len(net.input_shape)} input_shape: give one for each input"
            )
        layer.input_param.shape.extend(net.input_shape)
        return layer
    if len(net.input_dim) != 4 * count:
        raise NetError(
            f"{file}the net has {count} input and {len(net.input_dim)} input_dim; each input takes four "
            f"(batch, channels, height, width): give {4 * count}, or an input_shape for each input"
        )
    # UpgradeNetInput: four numbers each, in the order of the inputs.
    for first in range(0, 4 * count, 4):
        layer.input_param.shape.add(dim=net.input_dim[first : first + 4])
    return layer


def _freeze_statistics(layer: LayerParameter) -> None:
    """Keep the solver from a BatchNorm layer's mean, variance and factor."""
    # UpgradeNetBatchNorm: older files had to declare all three. With another number of them Caffe leaves the
    # layer as it is, and the layer's own set-up looks at them.
    if layer.type == "BatchNorm" and len(layer.param) == 3:
        for spec in layer.param:
            spec.lr_mult = 0.0
            spec.decay_mult = 0.0
