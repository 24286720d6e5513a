"""A Caffe net as an objective: a TRAIN net that is optimised, and a TEST net over the same tensors as its judge."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.caffe.module.net_plan import Learnable
from sparknet.errors import NetError
from sparknet.training.objectives.input_binding import Intake
from sparknet.training.objectives.objective import in_channels_last, in_memory_order

__all__ = ["CaffeObjective"]


class CaffeObjective:
    """The loss of the TRAIN net; measures are the scalar outputs of the TEST net.

    The two nets share the tensors of layers of the same name, as in Caffe: what moves the one moves the other.

    Args:
        train: phase TRAIN.
        test: phase TEST; the same net for one that is only to be tested.
        intakes: which input of the two nets is given which column.
        test_batch: rows of a forward pass of the TEST net.
        channels_last: keep images and filters in channels-last memory order.

    Attributes:
        train: the TRAIN net.
        test: the TEST net.
        intakes: of the two.
        loss_weights: by output of the TEST net, its weight in that net's loss, where it has one.
    """

    def __init__(
        self,
        train: CaffeNet,
        test: CaffeNet,
        *,
        intakes: tuple[Intake, Intake],
        test_batch: int,
        channels_last: bool = False,
    ) -> None:
        self.train = train
        self.test = test
        for net in (train, test):
            in_memory_order(net, channels_last)
        if test is not train:
            test.share_weights(train)
        self.learnable: Sequence[Learnable] = train.learnable
        self.evaluation_batch = self.unit = test_batch
        self.intakes = intakes
        self._channels_last = channels_last
        self._measures = [name for name in test.outputs if math.prod(test.shapes[name]) == 1]
        self.loss_weights = _loss_weights(test, self._measures)

    @property
    def module(self) -> nn.Module:
        """The TRAIN net."""
        return self.train

    @property
    def name(self) -> str:
        """As the description says."""
        return self.train.spec.parameters.name or "net"

    def check(self) -> None:
        """Refuse a net that cannot be trained or judged.

        Raises:
            NetError: the TRAIN net has no loss or no weights, or the TEST net has no scalar output.
        """
        where = self.train.spec.source
        if not any(weight for step in self.train.steps for weight in step.weights):
            raise NetError(
                f"{where}: no layer of phase TRAIN is a loss, so there is nothing to train: add one, "
                "SoftmaxWithLoss say, or give the file that Caffe trains with (train_val.prototxt)"
            )
        if not any(blob.lr_mult for blob in self.train.learnable):
            raise NetError(f"{where}: phase TRAIN has no blob with a lr_mult above 0; it must have at least one")
        self.check_measures()

    def check_measures(self) -> None:
        """Refuse a TEST net that measures nothing.

        Raises:
            NetError: it has no scalar output.
        """
        if not self._measures:
            outputs = ", ".join(f"{name} {self.test.shapes[name]}" for name in self.test.outputs) or "none"
            raise NetError(
                f"{self.test.spec.source}: no output of phase TEST is a single number (outputs: {outputs}), so "
                "there is nothing to measure: add a loss or an Accuracy layer to that phase"
            )

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The TRAIN net's loss.

        Raises:
            NetError: the rows do not fit the net.
        """
        return self.train.loss(self._run(self.train, self.intakes[0], images, labels))

    @torch.no_grad()
    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """The TEST net's scalar outputs, times the rows.

        Raises:
            NetError: the rows do not fit the net.
        """
        self.test.eval()
        outputs = self._run(self.test, self.intakes[1], images, labels)
        return {name: float(outputs[name].reshape(())) * len(labels) for name in self._measures}

    def _run(self, net: CaffeNet, intake: Intake, images: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        if self._channels_last:
            images = in_channels_last(images)
        return net(intake.inputs(images, labels))


def _loss_weights(net: CaffeNet, names: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for step in net.steps:
        for name, weight in zip(step.tops, step.weights, strict=True):
            weights[name] = weight  # a later layer of the same top stands for the blob
    return {name: weights[name] for name in names if weights.get(name)}
