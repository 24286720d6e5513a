"""By what a net is judged: sums over rows that add up, whoever has summed which part, and what is made of them."""

import math
from collections.abc import Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional

from sparknet.config import Measure
from sparknet.config import Objective as ObjectiveSection
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.training.objectives.losses import Loss, check_scores, counted, fitted, is_class, loss_name
from sparknet.training.objectives.net_call import output_of
from sparknet.training.objectives.objective import Better, Sums
from sparknet.training.objectives.torch_metric import TorchMetric

__all__ = ["Measuring", "build_measures"]


class Measuring(Protocol):
    """One or more figures."""

    @property
    def by_row(self) -> bool:
        """It does not matter how rows are cut into batches."""
        ...

    def sums(self, outputs: object, batch: Mapping[str, Tensor]) -> Sums:
        """Sums over a batch, of what the net has returned for it."""
        ...

    def conclude(self, sums: Sums, rows: int) -> dict[str, float]:
        """The figures, from the sums over all batches and their rows."""
        ...

    def better(self) -> dict[str, Better]:
        """By figure, whether it is the better the higher or the lower it is."""
        ...

    def to(self, device: torch.device) -> Self:
        """Move tensors of its own."""
        ...


def build_measures(section: ObjectiveSection, rows: RowSchema, loss: Loss, *, net: str) -> list[Measuring]:
    """The measures that the configuration names, or those that suit the target; the loss is always one.

    Raises:
        ConfigError: there is no such measure, or its parts cannot be summed.
    """
    measures: list[Measuring] = [_LossMeasure(loss, rows, net=net)]
    loss_is = loss_name(section, rows)
    if section.measures:
        named = [Measure(name=one) if isinstance(one, str) else one for one in section.measures]
        return measures + [TorchMetric(one, rows, loss=loss_is, net=net) for one in named]
    target = rows.targets[0]
    if len(rows.targets) > 1:
        return measures
    # What the outputs mean is known where the loss is one that we know: of others only the loss is measured.
    if loss_is in ("cross_entropy", "nll_loss"):
        return [_Hits(target, rows.weight, section.loss_arguments, net=net), *measures]
    if loss_is in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss") and not is_class(target):
        return [*measures, _AbsoluteError(target, rows.weight, net=net)]
    return measures


class _RowMeans:
    """Figures that are means over the rows, weighted where rows have weights."""

    by_row = True

    def __init__(self, weight: str) -> None:
        self._weight = weight

    def _weights(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        return batch[self._weight] if self._weight else None

    @staticmethod
    def _summed(values: Mapping[str, Tensor], weights: Tensor | None) -> Sums:
        """Sums of numbers [n] by name, with the sum of their weights where they have any."""
        if weights is None:
            return {name: (float(one.sum()),) for name, one in values.items()}
        total = float(weights.sum())
        return {name: (float((one * weights).sum()), total) for name, one in values.items()}

    @staticmethod
    def _means(sums: Sums, rows: int, names: tuple[str, ...]) -> dict[str, float]:
        amounts = {name: sums[name][1] if len(sums[name]) > 1 else float(rows) for name in names}
        # Rows that all weigh nothing have no mean, and their figures are not why a run should end.
        return {name: sums[name][0] / amount if amount else math.nan for name, amount in amounts.items()}


class _LossMeasure(_RowMeans):
    """The mean loss."""

    def __init__(self, loss: Loss, rows: RowSchema, *, net: str) -> None:
        super().__init__(rows.weight)
        self._loss, self.by_row = loss, loss.by_row

    def sums(self, outputs: object, batch: Mapping[str, Tensor]) -> Sums:
        # The mean of a batch times its rows (or their weights), so that the sums of all batches are that of all
        # rows.
        rows = len(next(iter(batch.values())))
        amount = float(batch[self._weight].sum()) if self._weight else float(rows)
        value = float(self._loss(outputs, batch)) * amount if amount else 0.0
        return {"loss": (value, amount) if self._weight else (value,)}

    def conclude(self, sums: Sums, rows: int) -> dict[str, float]:
        return self._means(sums, rows, ("loss",))

    def better(self) -> dict[str, Better]:
        return {"loss": "lower"}

    def to(self, device: torch.device) -> Self:
        return self  # the objective moves its loss


class _Hits(_RowMeans):
    """Accuracy, and whether the class is among the best five; of distributions the likeliest class counts."""

    def __init__(self, target: Column, weight: str, arguments: Mapping[str, Any], *, net: str) -> None:
        super().__init__(weight)
        self._target, self._arguments, self._net = target, arguments, net
        # Of five classes or fewer the right one is always among the best five.
        self._tops = {name: top for name, top in _TOPS.items() if target.classes is None or top < target.classes}
        # Only where it can be: a row whose one class counts is a row, and its sums need no amount.
        self._some_count = "ignore_index" in arguments or bool(target.shape)

    def sums(self, outputs: object, batch: Mapping[str, Tensor]) -> Sums:
        scores, target = output_of(outputs, "", net=self._net), batch[self._target.name]
        check_scores(scores, target, net=self._net)
        weights = self._weights(batch)
        if target.is_floating_point() or not self._some_count:
            ranks = _ranks(scores, target.argmax(1) if target.is_floating_point() else target)
            return self._summed({name: (ranks < top).double().mean(1) for name, top in self._tops.items()}, weights)
        # As the loss has it: classes that do not count are in no figure.
        counts = counted(target, self._arguments)
        ranks = _ranks(scores, torch.where(counts, target, 0))
        counts = counts.reshape(ranks.shape)
        amounts = counts.sum(1)
        # Of an image with a label for each pixel, the share of those pixels; a row without any is no row.
        shares = {
            name: ((ranks < top) & counts).double().sum(1) / amounts.clamp_min(1)
            for name, top in self._tops.items()
        }
        there = (amounts > 0).double()
        return self._summed(shares, there if weights is None else there * weights)

    def conclude(self, sums: Sums, rows: int) -> dict[str, float]:
        return self._means(sums, rows, tuple(self._tops))

    def better(self) -> dict[str, Better]:
        return dict.fromkeys(self._tops, "higher")

    def to(self, device: torch.device) -> Self:
        return self


_TOPS = {"accuracy": 1, "top5": 5}


def _ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes score no less than the labelled one, int64 [n, labels of a row]."""
    # A tie counts against the net, as in Caffe's accuracy layer: rank 0 must be strictly the best. So does
    # a score that is not a number, which compares as false.
    own = scores.gather(1, labels[:, None])
    return ((~(scores < own)).sum(1) - 1).reshape(len(scores), -1)


class _AbsoluteError(_RowMeans):
    """The mean absolute error of numbers."""

    def __init__(self, target: Column, weight: str, *, net: str) -> None:
        super().__init__(weight)
        self._target, self._net = target, net

    def sums(self, outputs: object, batch: Mapping[str, Tensor]) -> Sums:
        output, target = fitted(output_of(outputs, "", net=self._net), batch[self._target.name], net=self._net)
        errors = functional.l1_loss(output, target, reduction="none")
        return self._summed({"mae": errors.reshape(len(errors), -1).mean(1)}, self._weights(batch))

    def conclude(self, sums: Sums, rows: int) -> dict[str, float]:
        return self._means(sums, rows, ("mae",))

    def better(self) -> dict[str, Better]:
        return {"mae": "lower"}

    def to(self, device: torch.device) -> Self:
        return self
