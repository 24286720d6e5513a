"""What a replica optimises and by what it is judged: all that the training loop knows of what it trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn

from sparknet.caffe.solver.updates import Multiplied
from sparknet.data.loading.transform import Normalise
from sparknet.errors import NetError
from sparknet.training.objectives.answer import Answer
from sparknet.training.objectives.label_rules import LabelRule

__all__ = [
    "EVALUATION_BATCH",
    "Better",
    "InputTransform",
    "InputTransforms",
    "Objective",
    "Sums",
    "Tensors",
    "check_rows",
    "in_channels_last",
    "in_memory_order",
]

Better = Literal["higher", "lower"]

Tensors = Mapping[str, Tensor]
"""By name."""
Sums = Mapping[str, tuple[float, ...]]
"""By name numbers that add up over disjoint parts of the rows, in whatever order they come."""

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
    takes_middle: bool = False
    """The mean image may be larger than the rows: then its middle is taken off."""


InputTransforms = Mapping[str, tuple[InputTransform | None, InputTransform | None]]
"""By column what the net itself says of it in training and in evaluation; None, or no such column, where it says
nothing and the configuration decides."""


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
    def fits_when_built(self) -> bool:
        """Whether building it has held rows, layers and loss against each other."""
        ...

    @property
    def transforms(self) -> InputTransforms:
        """What the net itself says is done to its inputs."""
        ...

    def label_rules(self, *, testing: bool = False) -> Sequence[LabelRule]:
        """Which numbers of columns the net takes in training, or in a test, as far as that is known."""
        ...

    @property
    def judges(self) -> Mapping[str, "Objective"]:
        """By name of further rows by what the net is judged on them, where that is not this objective itself."""
        ...

    def train_mode(self) -> None:
        """Make the net ready for training steps."""
        ...

    @property
    def better(self) -> Mapping[str, Better]:
        """By measure whether it is the better the higher it is, or the lower; of all classes under one name."""
        ...

    def to(self, device: torch.device) -> Self:
        """Move the net, and all that a step or a forward pass takes beside the batch, and return itself.

        Parameters stay the same objects; buffers need not, so that an optimiser is built afterwards. Batches are
        brought there by whoever gives them.
        """
        ...

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The scalar to be minimised, in training mode.

        Args:
            batch: every column of the rows by its name, [batch, *shape]: inputs as the net is given them, float32
                or int64, targets as they are stored, int64 or float32, weights float32 [batch].

        Raises:
            NetError: the net does not return what it must.
        """
        ...

    def measure(self, batch: Mapping[str, Tensor]) -> Sums:
        """Sums over the rows of this batch, in evaluation mode, which `conclude` makes measures of.

        Raises:
            NetError: the net does not return what it must.
        """
        ...

    def conclude(self, sums: Sums, rows: int) -> dict[str, float]:
        """Measures by name, from the sums of all batches, added up, and their rows.

        Called on the driver, which has a net of its own that was never trained.
        """
        ...

    def scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The scores of every class, float32 [batch, classes], in evaluation mode and without a gradient.

        Of `batch` the inputs alone are needed. Before any softmax: the class of the highest is the prediction,
        their softmax the probabilities.

        Raises:
            NetError: the net has no such scores.
        """
        ...

    def answer(self) -> Answer:
        """How the net's output is read.

        Raises:
            NetError: it has none that is about a target.
        """
        ...

    @property
    def blobs(self) -> Sequence[str]:
        """What `infer` can be asked for beside the output: by name, parts of the net in their order."""
        ...

    def infer(self, batch: Mapping[str, Tensor], blobs: Sequence[str] = (), *, output: bool = True) -> Tensors:
        """One pass in evaluation mode and without a gradient.

        Args:
            batch: the inputs, as for `scores`.
            blobs: what else is wanted, names of `blobs`.
            output: the output is wanted too.

        Returns:
            [batch, ...] by name of the blob; the output, which `answer` reads, under the empty name.

        Raises:
            NetError: there is no such output, or what is asked for has no number of rows in front.
        """
        ...


def in_memory_order(module: nn.Module, channels_last: bool) -> nn.Module:
    """Lay the module's four-dimensional tensors out as asked; they stay the same objects."""
    return module.to(memory_format=torch.channels_last) if channels_last else module  # pyright: ignore[reportCallIssue]


def in_channels_last(images: Tensor) -> Tensor:
    """Images in channels-last memory order; rows of another shape as they are."""
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


def check_rows(found: Mapping[str, Tensor], rows: int, *, net: str) -> None:
    """Hold what a net made of a batch against its rows.

    Raises:
        NetError: something has another length.
    """
    for name, values in found.items():
        if not values.dim() or len(values) != rows:
            told = f"{name!r}" if name else "the output"
            raise NetError(
                f"net {net}: {told} has shape {tuple(values.shape)} for {rows} rows; it must have one part for "
                "each row, along the first axis: ask for another part of the net"
            )
