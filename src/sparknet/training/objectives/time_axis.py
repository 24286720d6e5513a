"""Nets over time: whether their steps are steps of a row, or rows."""

import torch

from sparknet.caffe.module.build import build
from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.errors import NetError

__all__ = ["check_steps"]


def check_steps(net: CaffeNet) -> None:
    """Refuse a net that takes the rows of a batch for steps in time, as nets do that Caffe feeds from HDF5.

    Rows are drawn, and what comes one after the other in a batch is no sequence: it would train, and learn nothing.

    Raises:
        NetError: it names the layer.
    """
    if not any(step.layer.is_over_time for step in net.steps):
        return
    twice = {name: (2 * net.shapes[name][0], *net.shapes[name][1:]) for name in net.inputs}
    try:
        with torch.device("meta"):  # shapes alone, and nothing is drawn
            larger = build(net.spec, twice)
    except NetError:
        return  # the batch is fixed elsewhere in the net, so that its steps do not follow the rows
    for step, other in zip(net.steps, larger.steps, strict=True):
        if step.layer.is_over_time and step.bottom_shapes[0][0] != other.bottom_shapes[0][0]:
            raise NetError(
                f"{net.spec.source}: layer {step.name!r} ({step.description.type}) takes the rows of a batch for "
                f"steps in time, {step.bottom_shapes[0][0]} of them; rows are drawn in an order of no meaning, so "
                "each must be a whole sequence: give rows [steps, ...], and bring the steps to the front (the "
                "section on sequences of docs/nets.md)"
            )
