"""Any module with a loss over its outputs, as an objective."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparknet.config import Objective as ObjectiveSection
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import NetError
from sparknet.training.objectives.losses import OWN, build_loss
from sparknet.training.objectives.measures import build_measures
from sparknet.training.objectives.net_call import NetCall, output_of
from sparknet.training.objectives.objective import (
    EVALUATION_BATCH,
    Better,
    InputTransforms,
    Sums,
    in_channels_last,
    in_memory_order,
)

__all__ = ["ModuleObjective", "Plain"]


class Plain:
    """A parameter that nothing multiplies."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.lr_mult = 1.0
        self.decay_mult = 1.0


class ModuleObjective:
    """A loss over what a module returns, and measures of it.

    Args:
        module: given the input columns of a batch.
        rows: names the columns.
        section: loss and measures; not given: cross-entropy of classes, squared error of numbers, and what suits
            them.
        name: for messages.
        channels_last: give it images in channels-last memory order.

    Raises:
        ConfigError: loss or measures do not suit the targets.
        NetError: the module does not take the inputs.
    """

    evaluation_batch = EVALUATION_BATCH
    judges: Mapping[str, Any] = MappingProxyType({})
    """All rows are judged alike."""

    def __init__(
        self,
        module: nn.Module,
        rows: RowSchema,
        section: ObjectiveSection | None = None,
        *,
        name: str,
        channels_last: bool = False,
    ) -> None:
        section = section or ObjectiveSection()
        # A module says nothing of how its inputs are made.
        self.transforms: InputTransforms = {}
        self.module = in_memory_order(module, channels_last)
        self.name = name
        self.learnable: Sequence[Plain] = [
            Plain(parameter) for parameter in module.parameters() if parameter.requires_grad
        ]
        self._channels_last = channels_last
        self._own_loss = section.loss == OWN
        self._call = NetCall(module, rows, name=name, with_targets=self._own_loss)
        self._loss = build_loss(section, rows, net=name)
        self._measures = build_measures(section, rows, self._loss, net=name)
        # What is of a batch and not of its rows must come from the same batches however parts are shared.
        self.unit = 1 if all(measure.by_row for measure in self._measures) else EVALUATION_BATCH

    def to(self, device: torch.device) -> Self:
        """Move the module, and tensors of loss and measures."""
        self.module.to(device)
        self._loss.to(device)
        for measure in self._measures:
            measure.to(device)
        return self

    def train_mode(self) -> None:
        """Training mode for all but frozen normalisation, whose statistics are part of what is frozen."""
        self.module.train()
        for part in self.module.modules():
            own = list(part.parameters(recurse=False))
            if own and getattr(part, "running_mean", None) is not None and not any(p.requires_grad for p in own):
                part.eval()

    @property
    def better(self) -> dict[str, Better]:
        """As the Protocol says."""
        return {name: which for one in self._measures for name, which in one.better().items()}

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch.

        Raises:
            NetError: the module returns something that the loss does not take.
        """
        return self._loss(self._outputs(batch), batch)

    @torch.no_grad()
    def measure(self, batch: Mapping[str, Tensor]) -> Sums:
        """Sums of all measures.

        Raises:
            NetError: the module returns something that a measure does not take.
        """
        self.module.eval()
        outputs = self._outputs(batch)
        sums: dict[str, tuple[float, ...]] = {}
        for measure in self._measures:
            sums |= measure.sums(outputs, batch)
        return sums

    def conclude(self, sums: Sums, rows: int) -> dict[str, float]:
        """All measures by name."""
        return {name: figure for one in self._measures for name, figure in one.conclude(sums, rows).items()}

    @torch.no_grad()
    def scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The module's logits.

        Raises:
            NetError: what the module returns is not [batch, classes].
        """
        self.module.eval()
        scores = output_of(self._outputs(batch, targets=False), "", net=self.name)
        if scores.dim() != 2:
            raise NetError(f"net {self.name} returned {tuple(scores.shape)}; scores are [batch, classes]")
        return scores.float()

    def _outputs(self, batch: Mapping[str, Tensor], *, targets: bool = True) -> object:
        if self._channels_last:
            batch = {name: in_channels_last(values) for name, values in batch.items()}
        return self._call(batch, targets=targets)
