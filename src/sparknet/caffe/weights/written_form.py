"""The description that Caffe writes into a weight file, which is not quite the one it read.

Net::ToProto writes what the net's layers were set up with: the layers of one state, each with the phase, with Split
layers where several readers share a blob (insert_splits.cpp), and with what a layer adds to its own description.
"""

import re
from collections import Counter

from sparknet.caffe.description.spec import NetSpec, PhaseName
from sparknet.caffe.description.upgrade import upgrade_net
from sparknet.caffe.schema import TEST, TRAIN, LayerParameter, NetParameter
from sparknet.errors import NetError

__all__ = ["describes", "written_form"]

_Top = tuple[int, int]
"""A top, as the number of its layer and its own number there."""


def written_form(state: NetSpec, phase: PhaseName) -> NetParameter:
    """Return what Caffe writes of a net in one state, but for the blobs.

    Args:
        state: what `NetSpec.select` left.
        phase: of that state.
    """
    written = NetParameter(name=state.parameters.name)
    written.layer.extend(_with_splits(state.parameters))
    for layer in written.layer:
        layer.ClearField("blobs")  # which a description read from a weight file may have
        _complete(layer)
        if not layer.HasField("phase"):
            layer.phase = TRAIN if phase == "TRAIN" else TEST
    return written


def describes(written: NetParameter, spec: NetSpec) -> bool:
    """Say whether a weight file's description is one of this net, in whatever phase and state.

    So it is if every layer of it, Splits of Caffe's making apart, is one of the net's, with the same parameters and
    readers. The layers' phase and rules do not count.
    """
    try:
        written = upgrade_net(written).net  # which looks for damage that comparing would trip over
    except NetError:
        return False
    names = [layer.name for layer in written.layer]
    if written.name != spec.parameters.name or len(set(names)) < len(names):
        return False
    # Layer by layer and not as a whole: the file has one state, and the description all of them.
    own = [_essence(layer, {}) for layer in spec.parameters.layer]
    readers: dict[str, str] = {}
    for layer in written.layer:
        if _is_automatic_split(layer):
            readers.update(dict.fromkeys(layer.top, layer.bottom[0]))
        elif _essence(layer, readers) not in own:
            return False
    return True


def _complete(layer: LayerParameter) -> None:
    """Add what layers add to their description when they are set up."""
    if layer.type.endswith("Loss") and not layer.loss_weight:  # LossLayer; all that descend from it are named so
        layer.loss_weight.append(1)
    if layer.type == "BatchNorm":
        # batch_norm_layer.cpp adds them itself in LayerSetUp, and Net::ToProto writes what the layer then has.
        while len(layer.param) < 3:
            layer.param.add(lr_mult=0)


def _with_splits(net: NetParameter) -> list[LayerParameter]:
    """The layers, with a Split after each top that several layers read, which then read its tops instead."""
    sources, readers, weights = _readers(net)
    given: Counter[_Top] = Counter()
    found: list[LayerParameter] = []
    for index, original in enumerate(net.layer):
        layer = LayerParameter()
        layer.CopyFrom(original)
        found.append(layer)
        for place, blob in enumerate(original.bottom):
            source = sources.get((index, place))
            if source is not None and readers[source] > 1:
                layer.bottom[place] = f"{_split_name(net, source, blob)}_{given[source]}"
                given[source] += 1
        for place, blob in enumerate(original.top):
            top = (index, place)
            if readers[top] > 1:
                weight = weights.get(top, 0.0)
                found.append(_split(_split_name(net, top, blob), blob, readers[top], weight))
                if weight:
                    # The weight moves on to the Split's first top, which nobody reads. Caffe's loss layers then
                    # give themselves a new one of 1, and so does `_complete`.
                    layer.ClearField("loss_weight")
                    given[top] += 1
    return found


def _readers(net: NetParameter) -> tuple[dict[tuple[int, int], _Top], Counter[_Top], dict[_Top, float]]:
    """The top behind each bottom, each top's number of readers, and the loss weights; a loss counts as a reader."""
    last: dict[str, _Top] = {}
    sources: dict[tuple[int, int], _Top] = {}
    readers: Counter[_Top] = Counter()
    weights: dict[_Top, float] = {}
    for index, layer in enumerate(net.layer):
        for place, blob in enumerate(layer.bottom):
            if blob in last:
                sources[index, place] = last[blob]
                readers[last[blob]] += 1
        last.update((blob, (index, place)) for place, blob in enumerate(layer.top))
        for blob, weight in zip(layer.top, layer.loss_weight, strict=False):
            weights[last[blob]] = weight
            readers[last[blob]] += weight != 0
    return sources, readers, weights


def _split_name(net: NetParameter, top: _Top, blob: str) -> str:
    return f"{blob}_{net.layer[top[0]].name}_{top[1]}_split"


def _split(name: str, blob: str, count: int, weight: float) -> LayerParameter:
    tops = [f"{name}_{number}" for number in range(count)]
    weights = [weight] + [0.0] * (count - 1) if weight else []
    return LayerParameter(name=name, type="Split", bottom=[blob], top=tops, loss_weight=weights)


def _is_automatic_split(layer: LayerParameter) -> bool:
    """Whether it is one of `_split`; one that took a loss weight along counts as a layer of the net."""
    return (
        layer.type == "Split"
        and len(layer.bottom) == 1
        and not layer.loss_weight
        and re.fullmatch(re.escape(layer.bottom[0]) + r"_.*_\d+_split", layer.name, re.DOTALL) is not None
        and list(layer.top) == [f"{layer.name}_{number}" for number in range(len(layer.top))]
    )


def _essence(layer: LayerParameter, readers: dict[str, str]) -> LayerParameter:
    """The layer, complete, without what depends on state and phase, reading the blobs behind the Splits."""
    essence = LayerParameter()
    essence.CopyFrom(layer)
    for field in ("phase", "include", "exclude", "blobs"):
        essence.ClearField(field)
    essence.bottom[:] = [readers.get(blob, blob) for blob in layer.bottom]
    _complete(essence)
    if layer.type == "BatchNorm":
        for given in essence.param:  # all of them mean the same: a solver never moves these blobs
            given.lr_mult = given.decay_mult = 0
    return essence
