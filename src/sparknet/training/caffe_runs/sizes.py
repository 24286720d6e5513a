"""Whether the images of a Caffe net may be of several sizes: where its data layers cut a square out of each."""

from dataclasses import replace

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.schema import LayerParameter
from sparknet.config import Data, DataColumn
from sparknet.training.caffe_runs.channels import image_layers

__all__ = ["with_sizes"]


def with_sizes(data: Data, spec: NetSpec) -> Data:
    """What data layers say of their images' sizes, where the configuration says nothing.

    data_transformer.cpp cuts each record by itself: with crop_size it asks only that the record be as large, and
    with mean_file that it be as large as the mean.

    Args:
        data: with the sources settled.
        spec: all phases of the net.
    """
    columns = dict(data.columns)
    for name, layers in image_layers(data, spec):
        rule = data.column(name)
        own = replace(rule, sizes="own")
        if not layers or rule.sizes or not own.may_keep_sizes or not all(_cuts(one, rule) for one in layers):
            continue
        if name not in data.columns and data.input_names == (name,):
            data = replace(data, sizes="own")
        else:
            columns[name] = replace(columns.get(name, DataColumn()), sizes="own")
    return replace(data, columns=columns)


def _cuts(layer: LayerParameter, rule: DataColumn) -> bool:
    """Whether a layer cuts a square out of each image, and takes no mean image off."""
    transform = layer.transform_param
    # What the configuration says of the mean wins.
    other_mean = rule.mean in ("none", "channel") or bool(rule.mean_values)
    return layer.type != "WindowData" and bool(transform.crop_size) and (other_mean or not transform.mean_file)
