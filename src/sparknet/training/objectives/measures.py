"""By what a net is judged: sums over rows that add up, whoever has summed which part, and what is made of them."""

import difflib
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor
from torch.nn import functional

from sparknet.config import Measure
from sparknet.config import Objective as ObjectiveSection
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import ConfigError
from sparknet.training.objectives.losses import Loss, fitted
from sparknet.training.objectives.net_call import output_of
from sparknet.training.objectives.objective import Better, Sums

__all__ = ["Measuring", "build_measures"]

_PLACES = ("", "classification", "regression", "text", "segmentation", "image", "retrieval", "audio")
"""Modules of torchmetrics in which a class is looked for that is named without one."""


class Measuring(Protocol):
    """One or more figures."""

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
    if section.measures:
        named = [Measure(name=one) if isinstance(one, str) else one for one in section.measures]
        return measures + [_TorchMeasure(one, rows, net=net) for one in named]
    target = rows.targets[0]
    if len(rows.targets) > 1:
        return measures
    # What the outputs mean is known where the loss is one that we know: of others only the loss is measured.
    is_class = target.classes is not None or target.dtype == "int64"
    if section.loss in ("cross_entropy", "nll_loss") or (not section.loss and is_class):
        return [_Hits(target, rows.weight, net=net), *measures]
    if section.loss in ("", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss") and not is_class:
        return [*measures, _AbsoluteError(target, rows.weight, net=net)]
    return measures


class _RowMeans:
    """Figures that are means over the rows, weighted where rows have weights."""

    def __init__(self, weight: str) -> None:
        self._weight = weight

    def _summed(self, values: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Sums:
        """Sums of numbers [n] by name."""
        if not self._weight:
            return {name: (float(one.sum()),) for name, one in values.items()}
        weights = batch[self._weight]
        total = float(weights.sum())
        return {name: (float((one * weights).sum()), total) for name, one in values.items()}

    def _means(self, sums: Sums, rows: int, names: tuple[str, ...]) -> dict[str, float]:
        return {name: sums[name][0] / (sums[name][1] if self._weight else rows) for name in names if name in sums}


class _LossMeasure(_RowMeans):
    """The mean loss."""

    def __init__(self, loss: Loss, rows: RowSchema, *, net: str) -> None:
        super().__init__(rows.weight)
        self._loss = loss

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
    """Accuracy, and the class among the five highest scores; of distributions the likeliest class counts."""

    def __init__(self, target: Column, weight: str, *, net: str) -> None:
        super().__init__(weight)
        self._target, self._net = target, net

    def sums(self, outputs: object, batch: Mapping[str, Tensor]) -> Sums:
        scores, target = output_of(outputs, "", net=self._net), batch[self._target.name]
        labels = target.argmax(1) if target.is_floating_point() else target
        # A tie counts against the net, as in Caffe's accuracy layer: rank 0 must be strictly the best. So does
        # a score that is not a number, which compares as false.
        own = scores.gather(1, labels[:, None])
        rank = ((~(scores < own)).sum(1) - 1).reshape(len(scores), -1)
        # Of an image with a label for each pixel, the share of its pixels.
        return self._summed({"accuracy": (rank < 1).double().mean(1), "top5": (rank < 5).double().mean(1)}, batch)

    def conclude(self, sums: Sums, rows: int) -> dict[str, float]:
        return self._means(sums, rows, ("accuracy", "top5"))

    def better(self) -> dict[str, Better]:
        return {"accuracy": "higher", "top5": "higher"}

    def to(self, device: torch.device) -> Self:
        return self


class _AbsoluteError(_RowMeans):
    """The mean absolute error of numbers."""

    def __init__(self, target: Column, weight: str, *, net: str) -> None:
        super().__init__(weight)
        self._target, self._net = target, net

    def sums(self, outputs: object, batch: Mapping[str, Tensor]) -> Sums:
        output, target = fitted(output_of(outputs, "", net=self._net), batch[self._target.name], net=self._net)
        errors = functional.l1_loss(output, target, reduction="none")
        return self._summed({"mae": errors.reshape(len(errors), -1).mean(1)}, batch)

    def conclude(self, sums: Sums, rows: int) -> dict[str, float]:
        return self._means(sums, rows, ("mae",))

    def better(self) -> dict[str, Better]:
        return {"mae": "lower"}

    def to(self, device: torch.device) -> Self:
        return self


class _TorchMeasure:
    """A metric of torchmetrics whose states are sums."""

    def __init__(self, measure: Measure, rows: RowSchema, *, net: str) -> None:
        self._name, self._output, self._net = measure.name, measure.output, net
        names = [column.name for column in rows.targets]
        target = measure.target or names[0]
        if target not in names:
            raise ConfigError(
                f"objective.measures: {measure.name} is of target {target!r}, and the targets are "
                f"{', '.join(names)}"
            )
        self._target = rows.targets[names.index(target)]
        kind = _find_class(measure)
        self._metric: Any = _made(kind, measure, self._target)
        _check_states(measure, self._metric)

    def sums(self, outputs: object, batch: Mapping[str, Tensor]) -> Sums:
        output, target = output_of(outputs, self._output, net=self._net), batch[self._target.name]
        if target.is_floating_point():
            output, target = fitted(output, target, net=self._net)
        elif output.dim() == target.dim() + 1 and output.shape[-1] == 1:
            output = output.squeeze(-1)
        self._metric.reset()
        self._metric.update(output.float(), target)
        return {
            f"{self._name}/{state}": tuple(getattr(self._metric, state).double().reshape(-1).tolist())
            for state in self._states()
        }

    def conclude(self, sums: Sums, rows: int) -> dict[str, float]:
        self._metric.reset()
        for state, default in self._states().items():
            values = torch.tensor(sums[f"{self._name}/{state}"], dtype=torch.float64)
            setattr(self._metric, state, values.reshape(default.shape).to(default.dtype))
        # Computing from states that nobody has updated is what it would warn of.
        self._metric._update_count = 1
        with warnings.catch_warnings():
            # A class without rows, as torchmetrics tells: the figure says it, as nan or 0.
            warnings.simplefilter("ignore")
            found: object = self._metric.compute()
        return _figures(self._name, found)

    def better(self) -> dict[str, Better]:
        return {self._name: "lower" if self._metric.higher_is_better is False else "higher"}

    def to(self, device: torch.device) -> Self:
        self._metric.to(device)
        return self

    def _states(self) -> dict[str, Tensor]:
        return self._metric._defaults


def _find_class(measure: Measure) -> Callable[..., Any]:
    full = measure.metric or measure.name
    place, _, name = full.rpartition(".")
    known: list[str] = []
    for module_name in (place,) if place else _PLACES:
        path = ".".join(filter(None, ("torchmetrics", module_name)))
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError:
            continue
        if isinstance(found := getattr(module, name, None), type):
            return found
        known += [one for one, value in vars(module).items() if isinstance(value, type) and one[0].isupper()]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "give a class of torchmetrics, as in regression.R2Score"
    raise ConfigError(f"objective.measures has {full!r}, which torchmetrics has not: {hint}")


def _made(kind: Callable[..., Any], measure: Measure, target: Column) -> Any:
    arguments = dict(measure.arguments)
    parameters = inspect.signature(kind.__init__).parameters
    if target.classes and "num_classes" in parameters and "num_classes" not in arguments:
        arguments["num_classes"] = target.classes
    try:
        return kind(**arguments)
    except Exception as error:  # the class judges its arguments, each in its own way
        raise ConfigError(
            f"objective.measures: {measure.metric or measure.name} with {arguments} cannot be made: "
            f"{type(error).__name__}: {error}: correct its arguments"
        ) from error


def _check_states(measure: Measure, metric: Any) -> None:
    reductions = cast("dict[str, Any]", metric._reductions)
    for state, default in metric._defaults.items():
        reduced = getattr(reductions.get(state), "__name__", str(reductions.get(state)))
        if isinstance(default, Tensor) and reduced == "dim_zero_sum":
            continue
        remedy = (
            "give it thresholds (a number of them), as in { thresholds = 200 }"
            if "thresholds" in inspect.signature(type(metric).__init__).parameters
            else "take another one"
        )
        raise ConfigError(
            f"objective.measures: {measure.metric or measure.name} keeps {state!r} of all rows, which workers "
            f"cannot add up: {remedy}"
        )


def _figures(name: str, found: object) -> dict[str, float]:
    """What a metric computed, as numbers: those of several classes by `name.0`, `name.1` and so on."""
    if isinstance(found, Mapping):
        parts = {f"{name}.{key}": value for key, value in cast("Mapping[str, object]", found).items()}
        return {one: number for part, value in parts.items() for one, number in _figures(part, value).items()}
    values = torch.as_tensor(cast("Any", found)).detach().double()
    if values.numel() == 1:
        return {name: float(values)}
    return {f"{name}.{at}": number for at, number in enumerate(values.reshape(-1).tolist())}
