"""From keyword arguments to Caffe's messages, held against the schema."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, cast

import numpy as np
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from sparknet.caffe.description.spec import NetSpec, PhaseName
from sparknet.caffe.dsl.parts import Rule
from sparknet.caffe.schema import LayerParameter, NetParameter, NetStateRule, ParamSpec
from sparknet.errors import NetError

__all__ = ["Blobs", "Layer", "NetParam", "Options", "Size", "along_axes", "make"]

Blobs = str | Sequence[str]
"""Names of blobs; a single one may stand alone."""

Size = int | Sequence[int]
"""One number for both axes, or (height, width)."""


class Options(TypedDict, total=False):
    """What every layer takes."""

    tops: Blobs
    """Names of the blobs that the layer makes; the layer's own name where not given."""
    in_place: bool
    """Overwrite the bottom: the top has its name."""
    phase: PhaseName
    """The layer exists in this phase only; short for `include=[Rule(phase)]`."""
    include: NetStateRule | Sequence[NetStateRule]
    """The layer exists where one of these rules holds."""
    exclude: NetStateRule | Sequence[NetStateRule]
    """The layer exists where none of these rules holds."""
    params: Sequence[ParamSpec]
    """Multipliers and names of the layer's blobs, in their order: weights, then biases."""
    loss_weight: float | Sequence[float]
    """Of each top in the net's loss; 1 for the first top of a loss layer where not given, else 0."""
    propagate_down: Sequence[bool]
    """Whether each bottom gets a gradient."""


# caffe.proto gives these types another type's message.
_ALIASES = {
    "deconvolution": "convolution",
    "im2col": "convolution",
    "lstm": "recurrent",
    "rnn": "recurrent",
    "softmaxwithloss": "softmax",
}
_UNSPOKEN = {"name", "type", "bottom", "top", "param", "phase", "blobs"}
"""Fields of a layer that are written through arguments with other names, or not at all."""
_OWN = {
    name.removesuffix("_param").replace("_", ""): name
    for name in LayerParameter.DESCRIPTOR.fields_by_name
    if name.endswith("_param")
}


def NetParam(name: str, *layers: LayerParameter) -> NetSpec:
    """Put layers together, in the order in which they run.

    Raises:
        NetError: what is given is no layer, or two layers of one state have the same name.
    """
    net = NetParameter(name=name)
    for place, layer in enumerate(cast("tuple[object, ...]", layers)):
        # A list in place of layers is the commonest slip; protobuf would speak of its own types.
        if not isinstance(layer, LayerParameter):
            raise NetError(
                f"net {name!r}: argument {place + 1} is a {type(layer).__name__}; it must be a layer: "
                "put a star before a list of layers"
            )
        net.layer.append(layer)
    spec = NetSpec.from_message(net, f"net {name!r}")
    # Caffe lets two layers have one name; their weights would then go to the first of them.
    _check_names(spec)
    return spec


def Layer(
    type: str,
    name: str,
    bottoms: Blobs = (),
    tops: Blobs | None = None,
    **parameters: Any,
) -> LayerParameter:
    """Describe a layer of any type.

    Args:
        type: Caffe's name of it, as in `Power`.
        name: the layer's name.
        bottoms: names of the blobs that it reads.
        tops: names of the blobs that it makes; the layer's own name where not given.
        parameters: what is in `Options`, and fields of the type's own message by their names there, also those of
            `loss_param` for losses and `transform_param` for data; messages may be given as dictionaries, choices
            by name: `Layer("Pooling", "pool1", ["conv1"], pool="AVE", kernel_size=3)`.

    Raises:
        NetError: the type has no such field, or a value does not fit its field.
    """
    options = {key: parameters.pop(key) for key in Options.__annotations__ if key in parameters}
    if tops is not None:
        options["tops"] = tops
    return make(type, name, bottoms, cast("Options", options), **parameters)


def make(kind: str, name: str, bottoms: Blobs, options: Options, **fields: Any) -> LayerParameter:
    """Describe a layer; a field whose value is None or Caffe's default is not written.

    Raises:
        NetError: the type has no such field, or a value does not fit its field.
    """
    where = f"layer {name!r} ({kind})"
    for key in options:
        if key not in Options.__annotations__:
            # For its error, where the type does not know the name either.
            _home(LayerParameter(type=kind), key, where)
            raise NetError(f"{where}: {key} is no argument here; Layer({kind!r}, ...) takes all fields of a type")
    read = _names(bottoms, f"{where}: bottoms")
    layer = LayerParameter(name=name, type=kind, bottom=read, top=_tops(name, read, options, where))
    for key, value in fields.items():
        home = _home(layer, key, where)  # also where there is nothing to write: a misspelt name is one all the same
        # Nor is a default written: the text is what a person would write, and equals the published file.
        if value is not None:
            _write(home, _fields(home.DESCRIPTOR)[key], value, where)
    _apply(layer, options, where)
    return layer


def along_axes(what: str, value: Size | None, *, default: int | None = None) -> dict[str, int]:
    """The fields of a kernel, stride or pad: one where both axes agree, else one for each."""
    if value is None:
        return {}
    sizes = [value] if isinstance(value, int) else list(value)
    if len(set(sizes)) == 1:
        plain = "kernel_size" if what == "kernel" else what
        return {} if sizes[0] == default else {plain: sizes[0]}
    if len(sizes) != 2:
        raise NetError(f"{what} is {value!r}; it must be one number or (height, width)")
    return {f"{what}_h": sizes[0], f"{what}_w": sizes[1]}


def _check_names(spec: NetSpec) -> None:
    """Refuse a name that two layers of one state have; TRAIN and TEST may well have one each."""
    rules = [rule for layer in spec.parameters.layer for rule in (*layer.include, *layer.exclude)]
    stages = {stage for rule in rules for stage in (*rule.stage, *rule.not_stage)}
    # Every stage alone, and none: states of two stages at once are left to whoever builds them.
    for state in [(), *((stage,) for stage in sorted(stages))]:
        for phase in ("TRAIN", "TEST"):
            names = Counter(layer.name for layer in spec.select(phase, stages=state).parameters.layer)
            double = [name for name, count in names.items() if count > 1]
            if double:
                raise NetError(
                    f"{spec.source}: {names[double[0]]} layers are named {double[0]!r}; weights find their layer "
                    "by its name: give each its own"
                )


def _tops(name: str, bottoms: Sequence[str], options: Options, where: str) -> Sequence[str]:
    if not options.get("in_place"):
        return _names(options.get("tops", name), f"{where}: tops")
    if "tops" in options or len(bottoms) != 1:
        raise NetError(
            f"{where}: in_place overwrites its bottom, and it has {len(bottoms)}"
            f"{' and tops of its own' if 'tops' in options else ''}; give one bottom and no tops"
        )
    return bottoms


def _apply(layer: LayerParameter, options: Options, where: str) -> None:
    include = _listed(options.get("include", ()))
    if "phase" in options:
        include = [*include, Rule(options["phase"])]
    written = {
        "include": include,
        "exclude": _listed(options.get("exclude", ())),
        "param": _listed(options.get("params", ())),
        "loss_weight": _listed(options.get("loss_weight", ())),
        "propagate_down": options.get("propagate_down", ()),
    }
    for key, value in written.items():
        _write(layer, _fields(LayerParameter.DESCRIPTOR)[key], value, where)


def _home(layer: LayerParameter, key: str, where: str) -> Message:
    """The message that has the field: the type's own, that of losses or of data, or the layer itself."""
    # Caffe names the field after the type: InnerProduct has inner_product_param, LRN lrn_param.
    lower = layer.type.lower()
    homes = [
        # the data layers' own fields of the same names are legacy, and Caffe does not heed them
        *(["transform_param"] if lower.endswith("data") else []),
        *([_OWN[_ALIASES.get(lower, lower)]] if _ALIASES.get(lower, lower) in _OWN else []),
        *(["loss_param"] if lower.endswith("loss") else []),
    ]
    fields = _fields(LayerParameter.DESCRIPTOR)
    for home in homes:
        if key in _fields(fields[home].message_type):
            return getattr(layer, home)
    if key in fields and key not in _UNSPOKEN:
        return layer
    own = [field for home in homes for field in _fields(fields[home].message_type)]
    known = [*own, *Options.__annotations__, "bottoms"]
    raise NetError(f"{where}: it has no field {key!r}: {_nearest(key, known, shown=own)}")


def _write(message: Message, field: FieldDescriptor, value: Any, where: str) -> None:
    """Write one field, checked by the schema."""
    name = field.name
    try:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            given = _listed(value) if field.is_repeated else [value]
            for part in given:
                target = getattr(message, name).add() if field.is_repeated else getattr(message, name)
                _write_message(target, part, f"{where}: {name}")
        elif field.is_repeated:
            if given := [
                _scalar(field, part) for part in _listed(value)
            ]:  # extending by nothing would write the parent
                getattr(message, name).extend(given)
        else:
            written = _scalar(field, value)
            if not (field.has_default_value and written == field.default_value):
                setattr(message, name, written)
    except (TypeError, ValueError) as error:
        raise NetError(f"{where}: {name} is {value!r}; it does not fit: {error}") from error


def _write_message(target: Message, value: Any, where: str) -> None:
    target.SetInParent()
    if isinstance(value, Mapping):
        for key, part in cast("Mapping[str, Any]", value).items():
            fields = _fields(target.DESCRIPTOR)
            if key not in fields:
                raise NetError(f"{where}: it has no field {key!r}: {_nearest(key, fields, shown=fields)}")
            _write(target, fields[key], part, where)
        return
    target.CopyFrom(value)


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_ENUM and isinstance(value, str):
        values = cast("EnumDescriptor", field.enum_type).values_by_name
        if value.upper() not in values:
            raise ValueError(_nearest(value.upper(), values, shown=values))
        return values[value.upper()].number
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return float(np.float32(value))  # so that a default is known as one: 0.1 is not Caffe's 0.1
    # True is 1 in Python, and protobuf would take it for num_output; it would take 1 for a flag, too.
    if isinstance(value, bool) != (field.type == FieldDescriptor.TYPE_BOOL):
        raise TypeError("true and false are no numbers" if isinstance(value, bool) else "give True or False")
    return value


def _fields(message: object) -> Mapping[str, FieldDescriptor]:
    return cast("Descriptor", message).fields_by_name


def _names(blobs: Blobs, where: str) -> list[str]:
    given = cast("object", blobs)
    names = list(cast("Iterable[object]", given)) if isinstance(given, list | tuple) else [given]
    wrong = [name for name in names if not isinstance(name, str) or not name]
    if wrong:
        raise NetError(f"{where}: {wrong[0]!r} is no name of a blob; give the names of blobs")
    return cast("list[str]", names)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _nearest(name: str, known: Iterable[str], *, shown: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(shown)) or 'none of its own'}"
