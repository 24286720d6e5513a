"""Caffe's oldest notation, V0 (2013), brought to V1: all settings of a layer in one flat `layer` block."""

import logging
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from sparknet.caffe.prototxt.fork_layers import about_type
from sparknet.caffe.schema import NetParameter, V1LayerParameter
from sparknet.errors import NetError

__all__ = ["put", "upgrade_v0"]

_log = logging.getLogger(__name__)

_V1 = V1LayerParameter
_V0_TYPES = {
    "accuracy": _V1.ACCURACY,
    "bnll": _V1.BNLL,
    "concat": _V1.CONCAT,
    "conv": _V1.CONVOLUTION,
    "data": _V1.DATA,
    "dropout": _V1.DROPOUT,
    "euclidean_loss": _V1.EUCLIDEAN_LOSS,
    "flatten": _V1.FLATTEN,
    "hdf5_data": _V1.HDF5_DATA,
    "hdf5_output": _V1.HDF5_OUTPUT,
    "im2col": _V1.IM2COL,
    "images": _V1.IMAGE_DATA,
    "infogain_loss": _V1.INFOGAIN_LOSS,
    "innerproduct": _V1.INNER_PRODUCT,
    "lrn": _V1.LRN,
    "multinomial_logistic_loss": _V1.MULTINOMIAL_LOGISTIC_LOSS,
    "pool": _V1.POOLING,
    "relu": _V1.RELU,
    "sigmoid": _V1.SIGMOID,
    "softmax": _V1.SOFTMAX,
    "softmax_loss": _V1.SOFTMAX_LOSS,
    "split": _V1.SPLIT,
    "tanh": _V1.TANH,
    "window_data": _V1.WINDOW_DATA,
}

_CONV, _POOL, _INNER = "convolution_param", "pooling_param", "inner_product_param"
_DATA, _IMAGES, _WINDOWS, _HDF5 = "data_param", "image_data_param", "window_data_param", "hdf5_data_param"
_V0_FIELDS: dict[str, tuple[str, dict[str, str]]] = {
    "num_output": ("num_output", {"conv": _CONV, "innerproduct": _INNER}),
    "biasterm": ("bias_term", {"conv": _CONV, "innerproduct": _INNER}),
    "weight_filler": ("weight_filler", {"conv": _CONV, "innerproduct": _INNER}),
    "bias_filler": ("bias_filler", {"conv": _CONV, "innerproduct": _INNER}),
    "pad": ("pad", {"conv": _CONV, "pool": _POOL}),
    "kernelsize": ("kernel_size", {"conv": _CONV, "pool": _POOL}),
    "group": ("group", {"conv": _CONV}),
    "stride": ("stride", {"conv": _CONV, "pool": _POOL}),
    "pool": ("pool", {"pool": _POOL}),
    "dropout_ratio": ("dropout_ratio", {"dropout": "dropout_param"}),
    "local_size": ("local_size", {"lrn": "lrn_param"}),
    "alpha": ("alpha", {"lrn": "lrn_param"}),
    "beta": ("beta", {"lrn": "lrn_param"}),
    "k": ("k", {"lrn": "lrn_param"}),
    "source": (
        "source",
        {
            "data": _DATA,
            "hdf5_data": _HDF5,
            "images": _IMAGES,
            "window_data": _WINDOWS,
            "infogain_loss": "infogain_loss_param",
        },
    ),
    "batchsize": (
        "batch_size",
        {"data": _DATA, "hdf5_data": _HDF5, "images": _IMAGES, "window_data": _WINDOWS},
    ),
    "rand_skip": ("rand_skip", {"data": _DATA, "images": _IMAGES}),
    "shuffle_images": ("shuffle", {"images": _IMAGES}),
    "new_height": ("new_height", {"images": _IMAGES}),
    "new_width": ("new_width", {"images": _IMAGES}),
    "concat_dim": ("concat_dim", {"concat": "concat_param"}),
    "det_fg_threshold": ("fg_threshold", {"window_data": _WINDOWS}),
    "det_bg_threshold": ("bg_threshold", {"window_data": _WINDOWS}),
    "det_fg_fraction": ("fg_fraction", {"window_data": _WINDOWS}),
    "det_context_pad": ("context_pad", {"window_data": _WINDOWS}),
    "det_crop_mode": ("crop_mode", {"window_data": _WINDOWS}),
    "new_num": ("", {}),
    "new_channels": ("", {}),
}
"""Of a V0 field: its V1 name, and by layer type the message that it is in."""

_V0_TRANSFORMATION = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}
_V0_KEPT = ("name", "blobs", "blobs_lr", "weight_decay", "hdf5_output_param")


def upgrade_v0(net: NetParameter, place: Callable[[int], str]) -> list[tuple[int, V1LayerParameter]]:
    """Return the `layers` of a V0 net in V1 form with their indices; its padding layers are folded away.

    Args:
        net: the net; it is not changed.
        place: how an error names the layer of an index.

    What Caffe passes over is passed over, with a warning: fields of other layer types, and those beside `layer`.

    Raises:
        NetError: a V1 layer among them, a type that V0 did not know, or padding that no layer can take.
    """
    for index, layer in enumerate(net.layers):
        outside = [field.name for field, _ in layer.ListFields() if field.name not in ("layer", "bottom", "top")]
        notation = (
            "this net is in the oldest notation, `layers { layer { ... } }`, with every setting in that block"
        )
        # Caffe makes a layer without a type of it, and ends where that is to be built.
        if not layer.HasField("layer"):
            raise NetError(
                f"{place(index)} has {outside[0] if outside else 'no `layer` block'}; {notation}: put it there"
            )
        # UpgradeV0LayerParameter takes bottom, top and what is in `layer`.
        for name in outside:
            _log.warning(
                "%s has %s outside of it; %s: it is passed over, as in Caffe", place(index), name, notation
            )
    return [(index, _from_v0(layer, place(index))) for index, layer in _fold_padding(net, place)]


def _fold_padding(net: NetParameter, place: Callable[[int], str]) -> list[tuple[int, V1LayerParameter]]:
    """Return copies of the V0 layers with the `padding` layers folded into the layers that read them."""
    layers: list[tuple[int, V1LayerParameter]] = []
    makers: dict[str, V1LayerParameter | None] = dict.fromkeys(net.input)
    for index, old in enumerate(net.layers):
        layer = V1LayerParameter()
        layer.CopyFrom(old)
        for position, bottom in enumerate(old.bottom):
            # UpgradeV0PaddingLayers ends here too ("Unknown blob input"), since the maker may have been a padding
            # layer.
            if bottom not in makers:
                raise NetError(
                    f"{place(index)} reads {bottom!r}, which no input and no layer before it makes: "
                    f"correct the name, or move the layer"
                )
            maker = makers[bottom]
            if maker is not None and maker.layer.type == "padding":
                _check_padding(old, maker, place(index))
                layer.layer.pad = maker.layer.pad
                layer.bottom[position] = maker.bottom[0]
        # Its readers have its pad and read its bottom now.
        if old.layer.type != "padding":
            layers.append((index, layer))
        # Behind the layer itself: one that works in place reads what was there before it.
        makers.update(dict.fromkeys(old.top, old))
    return layers


def _check_padding(reader: V1LayerParameter, padding: V1LayerParameter, where: str) -> None:
    """Check that a padding layer can become the `pad` of the layer that reads it, at `where`."""
    if reader.layer.type not in ("conv", "pool") or len(reader.bottom) != 1:
        raise NetError(
            f"{where} reads the padding layer {padding.layer.name!r}; "
            f"only a conv or pool layer with one bottom can: remove the padding"
        )
    if len(padding.bottom) != 1 or len(padding.top) != 1:
        raise NetError(
            f"{where} reads the padding layer {padding.layer.name!r} "
            f"with {len(padding.bottom)} bottom and {len(padding.top)} top: give it one of each"
        )


def _from_v0(old: V1LayerParameter, where: str) -> V1LayerParameter:
    """Return a V0 layer as a V1 layer; `where` begins an error."""
    settings = old.layer
    layer = V1LayerParameter(bottom=old.bottom, top=old.top)
    if settings.HasField("type"):
        if settings.type not in _V0_TYPES:
            if about := about_type(settings.type):
                raise NetError(f"{where} has the type {settings.type!r}, {about}")
            raise NetError(
                f"{where} has the type {settings.type!r}; the oldest notation has {', '.join(_V0_TYPES)} and "
                f"padding: correct it, or write the net in the new notation"
            )
        layer.type = _V0_TYPES[settings.type]
    for field, value in settings.ListFields():
        if field.name == "hdf5_output_param" and settings.type != "hdf5_output":
            _passed_over(where, field.name, ["hdf5_output"])
        # UpgradeV0LayerParameter: in a layer of any type.
        elif field.name in _V0_TRANSFORMATION:
            setattr(layer.transform_param, _V0_TRANSFORMATION[field.name], value)
        elif field.name in _V0_FIELDS:
            _put_v0(layer, settings.type, field.name, value, where)
        elif field.name in _V0_KEPT:
            put(layer, field.name, value)
    return layer


def _put_v0(layer: V1LayerParameter, kind: str, name: str, value: Any, where: str) -> None:
    """Set the V1 field that a V0 field has become for a layer of the type `kind`."""
    modern_name, holders = _V0_FIELDS[name]
    if kind not in holders:
        _passed_over(where, name, list(holders))
        return
    holder = getattr(layer, holders[kind])
    # Kernel, stride and pad have become lists in a Convolution since, one number for each axis.
    put(holder, modern_name, [value] if holder.DESCRIPTOR.fields_by_name[modern_name].is_repeated else value)


def _passed_over(where: str, name: str, kinds: list[str]) -> None:
    """Tell of a field that a layer's type does not have."""
    # upgrade_proto.cpp: "Unknown parameter ... for layer type ...", and "continuing anyway".
    rule = f"only {' and '.join(kinds)} layers have it" if kinds else "Caffe never read it"
    _log.warning("%s sets %s; %s: it is passed over, as in Caffe", where, name, rule)


def put(message: Message, name: str, value: Any) -> None:
    """Set a field, whatever it is, to a copy of `value`."""
    if isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
    elif hasattr(value, "append"):
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)
