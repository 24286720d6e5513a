"""Any module with a loss over its outputs, as an objective."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparknet.config import Objective as ObjectiveSection
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import NetError
from sparknet.training.objectives.answer import Answer, answer_of
from sparknet.training.objectives.given_code import Code
from sparknet.training.objectives.label_rules import LabelRule
from sparknet.training.objectives.losses import OWN, build_loss
from sparknet.training.objectives.measures import build_measures
from sparknet.training.objectives.net_call import NetCall, output_of
from sparknet.training.objectives.objective import (
    EVALUATION_BATCH,
    Better,
    InputTransforms,
    Sums,
    Tensors,
    check_rows,
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


class _Called(nn.Module):
    """A call as a module, so that other weights can be put under it."""

    def __init__(self, module: nn.Module, call: NetCall) -> None:
        super().__init__()
        self.module = module
        self._call = call

    def forward(self, batch: Mapping[str, Tensor]) -> object:
        return self._call(batch)


class ModuleObjective:
    """A loss over what a module returns, and measures of it.

    Args:
        module: given the input columns of a batch.
        rows: names the columns.
        section: loss and measures; not given: cross-entropy of classes, squared error of numbers, and what suits
            them.
        name: for messages.
        channels_last: give it images in channels-last memory order.
        code: what a program gave by name.

    Raises:
        ConfigError: loss or measures do not suit the targets.
        NetError: the module does not take the inputs.
    """

    evaluation_batch = EVALUATION_BATCH
    fits_when_built = False
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
        code: Code | None = None,
    ) -> None:
        section = section or ObjectiveSection()
        # A module says nothing of how its inputs are made.
        self.transforms: InputTransforms = {}
        self.module = in_memory_order(module, channels_last)
        self.name = name
        self.learnable: Sequence[Plain] = [
            Plain(parameter) for parameter in module.parameters() if parameter.requires_grad
        ]
        self._rows, self._section = rows, section
        self._channels_last = channels_last
        self._own_loss = section.loss == OWN
        self._call = NetCall(module, rows, name=name, with_targets=self._own_loss)
        self._loss = build_loss(section, rows, net=name, code=code)
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

    def label_rules(self, *, testing: bool = False) -> Sequence[LabelRule]:
        """Of the loss, over outputs as wide as a pass without memory shows them; it is a measure too."""
        del testing
        outputs = self._outputs_without_memory()
        return () if outputs is None else self._loss.label_rules(outputs)

    def _outputs_without_memory(self) -> object:
        """What the module returns for two rows, on the device `meta`; None where it does not run there."""
        rows = {
            column.name: torch.zeros(
                (2, *column.shape), dtype=torch.int64 if column.dtype == "int64" else torch.float32, device="meta"
            )
            for column in self._rows.columns
        }
        called = _Called(self.module, self._call)
        tensors = itertools.chain(called.named_parameters(), called.named_buffers())
        weights = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
        modes = [(part, part.training) for part in self.module.modules()]
        self.module.eval()
        try:
            with torch.no_grad(), torch.device("meta"):
                return functional_call(called, weights, (rows,))
        except Exception:  # the module is the user's, and may look at values, which are not there
            return None
        finally:
            for part, training in modes:
                part.training = training

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

    def answer(self) -> Answer:
        """By the loss and its target.

        Raises:
            NetError: there are several targets.
        """
        return answer_of(self._section, self._rows, net=self.name)

    @property
    def blobs(self) -> list[str]:
        """The dotted names of all parts of the module."""
        return [name for name, _ in self.module.named_modules() if name]

    @torch.no_grad()
    def infer(self, batch: Mapping[str, Tensor], blobs: Sequence[str] = (), *, output: bool = True) -> Tensors:
        """What the module and parts of it return; of a part that is called several times, the last.

        Raises:
            NetError: a part is not called, or returns no tensors, or none with the rows in front.
        """
        self.module.eval()
        kept: dict[str, object] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda _module, _given, returned: kept.update({name: returned})

        with ExitStack() as hooks:
            for name in blobs:
                hook = self.module.get_submodule(name).register_forward_hook(keep(name))
                hooks.callback(hook.remove)
            returned = self._outputs(batch, targets=False)
        if silent := [name for name in blobs if name not in kept]:
            raise NetError(f"net {self.name} does not call {', '.join(silent)} in evaluation: ask for other parts")
        found = {name: output_of(kept[name], "", net=f"{self.name}, {name}") for name in blobs}
        if output:
            found[""] = output_of(returned, "", net=self.name)
        check_rows(found, len(next(iter(batch.values()))), net=self.name)
        return found

    def _outputs(self, batch: Mapping[str, Tensor], *, targets: bool = True) -> object:
        if self._channels_last:
            batch = {name: in_channels_last(values) for name, values in batch.items()}
        return self._call(batch, targets=targets)
