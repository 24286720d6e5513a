"""How many channels the images of a Caffe net have: its data layers say it, or leave it to the files."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.schema import LayerParameter
from sparknet.config import Data, DataColumn
from sparknet.errors import ConfigError

__all__ = ["image_layers", "with_channels"]

Channels = Literal["colour", "grey", "stored"]
_IMAGES = ("Data", "ImageData", "WindowData")
"""Layers whose first top is images."""


def with_channels(data: Data, spec: NetSpec) -> Data:
    """What data layers say of their images' channels, where the configuration says nothing.

    As data_transformer.cpp and io.cpp have it, force_color, force_gray and is_color make three channels or one of
    an encoded image, and a Data layer without them leaves it the channels of its file.

    Args:
        data: with the sources settled.
        spec: all phases of the net.

    Raises:
        ConfigError: layers that give the same blob contradict each other.
    """
    columns = dict(data.columns)
    for name, layers in image_layers(data, spec):
        beside = data.beside.get(name)
        said = _said(layers, spec)
        if said == "stored" and (beside.source if beside else data.source) != "lmdb":
            continue
        rule = data.column(name)
        # What the configuration says wins; of what is no image there is nothing to say.
        if said is None or rule.channels or rule.shape or rule.kind not in (None, "image"):
            continue
        if name not in data.columns and data.input_names == (name,):
            data = replace(data, channels=said)
        else:
            columns[name] = replace(columns.get(name, DataColumn()), channels=said)
    return replace(data, columns=columns)


def image_layers(data: Data, spec: NetSpec) -> Iterator[tuple[str, list[LayerParameter]]]:
    """Columns that hold images, each with the layers of all phases that give its blob.

    Args:
        data: with the sources settled.
        spec: all phases of the net.
    """
    layers = [layer for layer in spec.parameters.layer if layer.type in _IMAGES and layer.top]
    tops = list(dict.fromkeys(layer.top[0] for layer in layers))
    for name in data.column_names:
        if name in tops:
            top = name
        elif name == data.input_names[0] and name not in data.beside:
            # The columns of a source have their own names; the blob that no column is called after is its images.
            top = next((one for one in tops if one not in data.column_names), "")
        else:
            continue
        yield name, [layer for layer in layers if layer.top[0] == top]


def _said(layers: list[LayerParameter], spec: NetSpec) -> Channels | None:
    """What the layers that give one blob say together; None where there are none."""
    found = {channels: layer for layer in layers for channels in _of_layer(layer)}
    if {"colour", "grey"} <= found.keys():
        raise ConfigError(
            f"{spec.source}: layer {found['colour'].name!r} makes three channels of an image and layer "
            f"{found['grey'].name!r} one; both phases must make the same: correct one of them"
        )
    # Of a phase that leaves images as they are and one that brings them to a number, the number serves both.
    return next((channels for channels in ("colour", "grey", "stored") if channels in found), None)


def _of_layer(layer: LayerParameter) -> list[Channels]:
    if layer.type == "ImageData":
        return ["colour" if layer.image_data_param.is_color else "grey"]
    if layer.type == "WindowData":
        return ["colour"]
    transform = layer.transform_param
    if transform.force_color or transform.force_gray:
        return ["grey" if transform.force_gray else "colour"]
    return ["stored"]
