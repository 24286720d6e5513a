"""A net's weights, to and from files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sparknet.caffe.description.spec import NetSpec, PhaseName
from sparknet.caffe.schema import LayerParameter, NetParameter
from sparknet.caffe.weights.blobs import Array
from sparknet.caffe.weights.caffemodel import Weights, read_weights, write_binary
from sparknet.caffe.weights.hdf5 import check_names, write_hdf5
from sparknet.caffe.weights.written_form import describes, written_form
from sparknet.errors import NetError

__all__ = ["Frame", "Loaded", "WeightHolder", "check_hdf5", "load_listed", "load_weights", "write_weights"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What came of loading; each in the order of the net or of the file."""

    layers: tuple[str, ...]
    """Layers that took their blobs from the file."""
    missing: tuple[str, ...]
    """Layers with blobs that the file does not have, not even in a layer that shares them: they keep theirs."""
    unused: tuple[str, ...]
    """Layers with blobs in the file that the net does not have."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """What a weight file said beside the weights that a net took from it, for writing the same file again.

    A file holds one state of the net, and this net may be in another: a TEST net reads what was trained in TRAIN.
    With the frame, reading a file and writing it changes no byte of it, and loses no layer that only the other
    state has. It is kept only where the file is wholly of this net; after fine-tuning from another net's file, the
    net writes its own description, as Caffe always does.
    """

    description: NetParameter
    others: dict[str, list[Array]]
    """Blobs of the layers that the net does not have in its state."""


class WeightHolder(Protocol):
    """What files need of a net: `CaffeNet`, which stands a floor above this one."""

    description: NetSpec
    """Of all states."""
    spec: NetSpec
    """Of the net's own state."""
    phase: PhaseName
    frame: Frame | None
    """What the file said that is wholly of this net and was loaded last."""

    def weights(self) -> dict[str, list[Tensor]]:
        """The learned tensors by layer name, live; a shared one appears in each layer, and the first of a name."""
        ...

    def layer_blobs(self) -> list[tuple[LayerParameter, list[Tensor]]]:
        """Of each layer that computes, in order, its description and its learned tensors, live."""
        ...

    def set_weights(self, weights: Mapping[str, Sequence[Tensor | Array]], /) -> None:
        """Copy values into the layers of the same names; a NetError changes none."""
        ...


def load_weights(net: WeightHolder, path: str | os.PathLike[str], *, whole: bool = False) -> Loaded:
    """Copy a file's blobs into the layers of the same names; see `CaffeNet.load_weights`.

    Args:
        net: takes them.
        path: the file.
        whole: refuse a file that lacks layers of the net, such as one that was cut between two of them.
    """
    weights = read_weights(path)
    own = net.weights()
    shared = _shared_places(own)
    chosen: dict[str, list[Tensor | Array]] = {}
    taken: set[int] = set()
    for name, tensors in own.items():
        found = weights.blobs.get(name)
        if found is None:
            continue
        # By layer name alone, as net.cpp does (CopyTrainedLayersFrom); order and type do not count.
        # An HDF5 file leaves a shared blob to the first layer that has it: set it to what it is.
        fill = shared.get(name, set[int]()) if weights.description is None else set[int]()
        if set(found) | fill != set(range(len(tensors))):
            raise NetError(
                f"{weights.source}: layer {name!r}: expected {len(tensors)} blobs, got {len(found)}; "
                "the net must be that of the weights, or the layer have another name"
            )
        chosen[name] = [found.get(place, tensor) for place, tensor in enumerate(tensors)]
        # By memory: a layer that the file lacks is not missing if another one shares its blobs.
        taken.update(tensors[place].data_ptr() for place in found)
    missing = tuple(
        name for name, tensors in own.items() if any(tensor.data_ptr() not in taken for tensor in tensors)
    )
    if whole and missing:
        raise NetError(
            f"{weights.source} has no weights for layers {', '.join(missing)}; a whole file has them: it was cut "
            "off, or is of another net"
        )
    try:
        net.set_weights(chosen)
    except NetError as error:
        raise NetError(f"{weights.source}: {error}") from error
    # Only after the weights are in: a file that did not fit must leave no trace.
    net.frame = _frame(net, weights)
    return Loaded(
        layers=tuple(chosen),
        missing=missing,
        unused=tuple(name for name, arrays in weights.blobs.items() if arrays and name not in own),
    )


def load_listed(net: WeightHolder, paths: str) -> tuple[str, ...]:
    """Copy the blobs of files, their paths separated by commas, into a net, one file after the other.

    Returns:
        Layers of the net for which no file has blobs: they keep theirs.

    Raises:
        NetError: a file is missing or damaged, or does not fit.
    """
    # As `caffe train --weights a,b` (caffe.cpp, CopyLayers): of a layer in several files the last one counts.
    missing = [set(load_weights(net, path).missing) for path in map(str.strip, paths.split(",")) if path]
    return tuple(name for name in net.weights() if all(name in lacking for lacking in missing))


def write_weights(net: WeightHolder, path: str | os.PathLike[str], *, as_loaded: bool = True) -> None:
    """Write the net's weights; see `CaffeNet.save_weights`."""
    own = [(layer, [_array(tensor) for tensor in blobs]) for layer, blobs in net.layer_blobs()]
    description = written_form(net.spec, net.phase)
    if os.fspath(path).endswith(".h5"):
        check_hdf5(net, path)
        shared = _shared_places(net.weights())
        places: dict[str, dict[int, Array]] = {layer.name: {} for layer in description.layer}
        for layer, arrays in own:
            left = shared.get(layer.name, set[int]())
            places[layer.name] |= {place: array for place, array in enumerate(arrays) if place not in left}
        write_hdf5(places, path)
    elif net.frame is not None and as_loaded:
        # Names that come twice are in no frame.
        named = {**net.frame.others, **{layer.name: arrays for layer, arrays in own if arrays}}
        write_binary(
            net.frame.description, [named.get(layer.name, ()) for layer in net.frame.description.layer], path
        )
    else:
        write_binary(description, _in_order(description, own), path)


def check_hdf5(net: WeightHolder, path: str | os.PathLike[str]) -> None:
    """See that the net's weights can be written as HDF5.

    Raises:
        NetError: a layer's name cannot be that of a group there, or two layers with blobs have it.
    """
    names = (layer.name for layer in written_form(net.spec, net.phase).layer)
    check_names(names, (layer.name for layer, blobs in net.layer_blobs() if blobs), path)


def _in_order(written: NetParameter, own: Sequence[tuple[LayerParameter, list[Array]]]) -> list[Sequence[Array]]:
    """The blobs of each layer of a description, which has layers in between that the net does not run."""
    found: list[Sequence[Array]] = []
    at = 0
    for layer in written.layer:
        # By type too: layers of one name, or without any, may be inputs and others.
        runs = at < len(own) and (own[at][0].name, own[at][0].type) == (layer.name, layer.type)
        found.append(own[at][1] if runs else ())
        at += runs
    return found


def _frame(net: WeightHolder, weights: Weights) -> Frame | None:
    own = net.weights()
    if weights.description is None or not weights.is_modern or not all(weights.blobs.get(name) for name in own):
        return None
    if not describes(weights.description, net.description):
        return None
    others = {
        # copies, else they would keep the whole file in memory
        name: [arrays[place].copy() for place in sorted(arrays)]
        for name, arrays in weights.blobs.items()
        if arrays and name not in own
    }
    return Frame(description=weights.description, others=others)


def _shared_places(weights: dict[str, list[Tensor]]) -> dict[str, set[int]]:
    """Of each layer the places of blobs that a layer before it has too, told by where their numbers lie.

    A blob that is shared in another shape is a tensor of its own over the same numbers.
    """
    seen: set[int] = set()
    places: dict[str, set[int]] = {}
    for name, tensors in weights.items():
        places[name] = {place for place, tensor in enumerate(tensors) if tensor.data_ptr() in seen}
        seen.update(tensor.data_ptr() for tensor in tensors)
    return places


def _array(tensor: Tensor) -> Array:
    """On the CPU, float64 if it is so and else float32; the tensor's own memory where that can be."""
    # Caffe knows these two; half precision is widened, which loses nothing.
    plain = tensor.detach().cpu()
    array: Array = plain.to(torch.float64 if plain.dtype == torch.float64 else torch.float32).numpy()
    return np.asarray(array)
