"""What a replica optimises and by what it is judged: a Protocol, and its form for any module that gives logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparknet.caffe.solver.updates import Multiplied
from sparknet.data.loading.transform import Normalise
from sparknet.errors import NetError

__all__ = ["EVALUATION_BATCH", "InputTransform", "InputTransforms", "ModuleObjective", "Objective"]

EVALUATION_BATCH = 256
"""Rows of a forward pass where the net does not say."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class InputTransform:
    """What a net's own description does to its input in one phase."""

    where: str
    """The layer that says it, for messages."""
    normalise: Normalise
    """All of it but the mean."""
    mean_file: str = ""
    """File of the mean image that is taken off."""
    mean_values: tuple[float, ...] = ()
    """Or the numbers that are: one, or one per channel."""


InputTransforms = tuple[InputTransform | None, InputTransform | None]
"""Of training and of evaluation; None where the net says nothing and the configuration decides."""


class Objective(Protocol):
    """A net with its loss and its measures: all that the training loop knows of what it trains."""

    @property
    def module(self) -> nn.Module:
        """What is trained, averaged, checkpointed and saved."""
        ...

    @property
    def name(self) -> str:
        """The net's name, for people."""
        ...

    @property
    def learnable(self) -> Sequence[Multiplied]:
        """What an optimiser updates, with Caffe's multipliers."""
        ...

    @property
    def evaluation_batch(self) -> int:
        """Rows of a forward pass of an evaluation."""
        ...

    @property
    def unit(self) -> int:
        """Parts of an evaluation begin at multiples of so many rows."""
        ...

    @property
    def transforms(self) -> InputTransforms:
        """What the net itself says is done to its inputs."""
        ...

    def to(self, device: torch.device) -> Self:
        """Move the net, and all that a step or a forward pass takes beside the batch, and return itself.

        Parameters stay the same objects; buffers need not, so that an optimiser is built afterwards. Batches are
        brought there by whoever gives them.
        """
        ...

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The scalar to be minimised, for float32 [batch, *shape] and int64 [batch], in training mode.

        Raises:
            NetError: the net does not return what it must.
        """
        ...

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Measures by name, each the sum over the rows of this batch, in evaluation mode.

        Raises:
            NetError: the net does not return what it must.
        """
        ...

    def scores(self, images: Tensor) -> Tensor:
        """The scores of every class, float32 [batch, classes], in evaluation mode and without a gradient.

        Before any softmax: the class of the highest is the prediction, their softmax the probabilities.

        Raises:
            NetError: the net has no such scores.
        """
        ...


class Plain:
    """A parameter that nothing multiplies."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.lr_mult = 1.0
        self.decay_mult = 1.0


class ModuleObjective:
    """Softmax cross-entropy of a module's logits; measures are accuracy, top5 and loss.

    Args:
        module: maps float32 inputs [batch, *shape] to logits [batch, classes].
        name: for messages.
        channels_last: give it images in channels-last memory order.
    """

    evaluation_batch = EVALUATION_BATCH
    # Measures are sums of single rows here: it is all one where an evaluation is cut.
    unit = 1
    transforms: InputTransforms = (None, None)

    def __init__(self, module: nn.Module, *, name: str, channels_last: bool = False) -> None:
        self.module = in_memory_order(module, channels_last)
        self.name = name
        self.learnable = [Plain(parameter) for parameter in module.parameters() if parameter.requires_grad]
        self._channels_last = channels_last

    def to(self, device: torch.device) -> Self:
        """Move the module."""
        self.module.to(device)
        return self

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy.

        Raises:
            NetError: what the module returns is not [batch, classes].
        """
        logits = self._logits(images)
        try:
            return functional.cross_entropy(logits, labels)
        except IndexError as error:
            # So torch tells a label out of range, on a CPU.
            raise NetError(
                f"net {self.name} returned {tuple(logits.shape)} and a label is {int(labels.max())}; it must "
                "return a score for every class: build it with the `classes` that it is given"
            ) from error

    @torch.no_grad()
    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Hits, hits among the five highest scores, and summed cross-entropy.

        Raises:
            NetError: what the module returns is not [batch, classes].
        """
        self.module.eval()
        logits = self._logits(images)
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        # A tie counts against the net, as in Caffe's accuracy layer: rank 0 must be strictly the best. So does
        # a score that is not a number, which compares as false.
        scores = logits.gather(1, labels[:, None])
        rank = (~(logits < scores)).sum(1) - 1
        return {
            "accuracy": float((rank < 1).sum()),
            "top5": float((rank < 5).sum()),
            "loss": float(loss),
        }

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """The module's logits.

        Raises:
            NetError: what the module returns is not [batch, classes].
        """
        self.module.eval()
        return self._logits(images).float()

    def _logits(self, images: Tensor) -> Tensor:
        output: object = self.module(in_channels_last(images) if self._channels_last else images)
        if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images):
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise NetError(f"net {self.name} returned {found}; it must return [{len(images)}, classes]")
        return output


def in_memory_order(module: nn.Module, channels_last: bool) -> nn.Module:
    """Lay the module's four-dimensional tensors out as asked; they stay the same objects."""
    return module.to(memory_format=torch.channels_last) if channels_last else module  # pyright: ignore[reportCallIssue]


def in_channels_last(images: Tensor) -> Tensor:
    """Images in channels-last memory order; rows of another shape as they are."""
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images
