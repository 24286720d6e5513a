"""Metrics of torchmetrics, whose states are added up over the parts of an evaluation."""

import difflib
import importlib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor

from sparknet.config import Measure
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import ConfigError, NetError
from sparknet.training.objectives.losses import fitted
from sparknet.training.objectives.net_call import output_of
from sparknet.training.objectives.objective import Better, Sums

__all__ = ["TorchMetric", "find_metric"]

_PLACES = ("classification", "regression", "segmentation", "image", "text", "retrieval", "audio", "")
"""Modules of torchmetrics in which a class is looked for that is named without one; the package itself last, which
warns of some that have moved."""
_REMEDIES = {
    "thresholds": "give it thresholds (a number of them), as in { thresholds = 200 }",
    "multidim_average": "leave multidim_average at 'global'",
}
"""By the argument that makes sums of what a class keeps."""
_SOFTMAX = ("cross_entropy", "nll_loss")
_SIGMOID = ("binary_cross_entropy_with_logits", "multilabel_soft_margin_loss")
_PROBABILITIES = ("binary_cross_entropy",)
"""Losses that tell what the net's output is: scores of classes of which one holds, scores of each by itself, or
probabilities."""


class TorchMetric:
    """A metric of torchmetrics whose states are sums.

    Args:
        measure: which, with what arguments, of which output and target.
        rows: names the targets.
        loss: the loss's name, which may tell what the output is.
        net: the net's name, for messages.

    Attributes:
        by_row: it does not matter how rows are cut into batches.

    Raises:
        ConfigError: there is no such class or target, or it does not take the arguments, or keeps what cannot be
            added up.
    """

    def __init__(self, measure: Measure, rows: RowSchema, *, loss: str, net: str) -> None:
        self._name, self._output, self._net = measure.name, measure.output, net
        names = [column.name for column in rows.targets]
        target = measure.target or names[0]
        if target not in names:
            raise ConfigError(
                f"objective.measures: {measure.name} is of target {target!r}, and the targets are "
                f"{', '.join(names)}"
            )
        self._target = rows.targets[names.index(target)]
        kind = find_metric(measure)
        self._metric: Any = _made(kind, measure, self._target)
        _check_states(measure, self._metric)
        # Those of classification take what lies in 0..1 for probabilities and all else for scores, batch by batch:
        # scores that are small would be taken now for the one and now for the other.
        judges = type(self._metric).__module__.startswith("torchmetrics.classification")
        self._loss = loss if judges and not measure.output else ""
        self.by_row = not judges or self._loss in (*_SOFTMAX, *_SIGMOID, *_PROBABILITIES)

    def sums(self, outputs: object, batch: Mapping[str, Tensor]) -> Sums:
        """The metric's states over a batch alone, each by its name.

        Raises:
            NetError: the metric does not take what the net has returned.
        """
        output, target = output_of(outputs, self._output, net=self._net), batch[self._target.name]
        if target.is_floating_point():
            output, target = fitted(output, target, net=self._net)
        elif output.dim() == target.dim() + 1 and output.shape[-1] == 1:
            output = output.squeeze(-1)
        self._metric.reset()
        try:
            self._metric.update(self._probabilities(output.float(), target), target)
        except (RuntimeError, ValueError, TypeError) as error:  # it judges what it is given, each in its own way
            raise NetError(
                f"objective.measures: {self._name} does not take outputs {tuple(output.shape)} of net {self._net} "
                f"and targets {self._target.name} {tuple(target.shape)}: {error}: take another metric, or give it "
                "arguments, an output or a target"
            ) from error
        return {
            f"{self._name}/{state}": tuple(getattr(self._metric, state).double().reshape(-1).tolist())
            for state in self._states()
        }

    def conclude(self, sums: Sums, rows: int) -> dict[str, float]:
        """What the metric computes of the sums over all rows; of several figures `name.0` and so on."""
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
        """As the class says; higher where it does not."""
        return {self._name: "lower" if self._metric.higher_is_better is False else "higher"}

    def to(self, device: torch.device) -> Self:
        """Move the states."""
        self._metric.to(device)
        return self

    def _probabilities(self, output: Tensor, target: Tensor) -> Tensor:
        if self._loss in _SOFTMAX and output.dim() == target.dim() + 1:
            return output.softmax(1)
        return output.sigmoid() if self._loss in _SIGMOID else output

    def _states(self) -> dict[str, Tensor]:
        return self._metric._defaults


def find_metric(measure: Measure) -> type[Any]:
    """The class of torchmetrics that a measure names.

    Raises:
        ConfigError: there is none, or it measures nothing by itself.
    """
    full = measure.metric or measure.name
    place, _, name = full.rpartition(".")
    known: list[str] = []
    for module_name in (place,) if place else _PLACES:
        path = ".".join(filter(None, ("torchmetrics", module_name)))
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError:
            continue
        found = {one: value for one, value in vars(module).items() if isinstance(value, type) and one[0].isupper()}
        if name in found:
            return _judged(full, found[name])
        known += found
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "give a class of torchmetrics, as in regression.R2Score"
    raise ConfigError(f"objective.measures has {full!r}, which torchmetrics has not: {hint}")


def _judged(name: str, kind: type[Any]) -> type[Any]:
    # Here and not at the top: it takes a second, and most runs name no class of it.
    from torchmetrics import Metric
    from torchmetrics.aggregation import BaseAggregator
    from torchmetrics.wrappers.abstract import WrapperMetric

    # Aggregators would take the targets for weights, without a word; wrappers keep their sums in other metrics.
    if not issubclass(kind, Metric) or issubclass(kind, BaseAggregator | WrapperMetric):
        raise ConfigError(
            f"objective.measures has {name!r}, which compares no outputs with targets by itself: take another one, "
            "as regression.MeanSquaredError"
        )
    return kind


def _made(kind: type[Any], measure: Measure, target: Column) -> Any:
    arguments = dict(measure.arguments)
    # Those of a task are made by __new__, which picks another class.
    parameters = {**inspect.signature(kind.__new__).parameters, **inspect.signature(kind.__init__).parameters}
    if target.classes:
        if "task" in parameters:
            arguments.setdefault("task", "multiclass")
        # One of two classes, and one of a list of numbers, know how many there are.
        if "num_classes" in parameters and arguments.get("task", "multiclass") == "multiclass":
            arguments.setdefault("num_classes", target.classes)
    try:
        with warnings.catch_warnings():
            # Of metrics that keep every row, as it says: they are refused.
            warnings.simplefilter("ignore")
            return kind(**arguments)
    except Exception as error:  # the class judges its arguments, each in its own way
        raise ConfigError(
            f"objective.measures: {measure.metric or measure.name} with {arguments} cannot be made: "
            f"{type(error).__name__}: {error}: correct its arguments"
        ) from error


def _check_states(measure: Measure, metric: Any) -> None:
    name = measure.metric or measure.name
    reductions = cast("dict[str, Any]", metric._reductions)
    for state, default in metric._defaults.items():
        reduced = getattr(reductions.get(state), "__name__", str(reductions.get(state)))
        if isinstance(default, Tensor) and reduced == "dim_zero_sum":
            continue
        parameters = inspect.signature(type(metric).__init__).parameters
        remedy = next((text for key, text in _REMEDIES.items() if key in parameters), "take another one")
        raise ConfigError(
            f"objective.measures: {name} keeps {state!r}, which is no sum over the rows, so that workers cannot "
            f"add it up: {remedy}"
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
