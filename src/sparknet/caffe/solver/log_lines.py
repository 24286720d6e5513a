"""What a solver tells about itself, worded like Caffe's log, so that tools which read such logs go on working."""

from collections import deque
from collections.abc import Iterator, Mapping

from torch import Tensor

from sparknet.caffe.module.caffe_net import CaffeNet

__all__ = ["SmoothedLoss", "loss_weights", "output_lines"]


class SmoothedLoss:
    """The mean of the last losses.

    Args:
        window: how many of them; average_loss of the solver.
    """

    def __init__(self, window: int) -> None:
        self._losses: deque[float] = deque(maxlen=window)

    def add(self, loss: float) -> float:
        """Take in the loss of an iteration and return the mean."""
        self._losses.append(loss)
        return sum(self._losses) / len(self._losses)


def loss_weights(net: CaffeNet) -> dict[str, float]:
    """The weight in the net's loss of each blob that has one."""
    return {
        name: weight for step in net.steps for name, weight in zip(step.tops, step.weights, strict=False) if weight
    }


def output_lines(role: str, net: CaffeNet, values: Mapping[str, Tensor]) -> Iterator[str]:
    """A line for each number in the net's output blobs.

    Args:
        role: "Train" or "Test".
        net: the net.
        values: its output blobs, or their means over a test.
    """
    weights = loss_weights(net)
    place = 0
    for name in net.outputs:
        for value in values[name].flatten().tolist():
            line = f"    {role} net output #{place}: {name} = {value:g}"
            if weight := weights.get(name):
                line += f" (* {weight:g} = {weight * value:g} loss)"
            yield line
            place += 1
