"""What is minimised, and what is measured."""

from dataclasses import dataclass, field
from typing import Any

from sparknet.config.rules import require

__all__ = ["Measure", "Objective"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One measure with what it needs."""

    name: str
    """What it is called in results."""
    metric: str = ""
    """A class of torchmetrics, as in `regression.R2Score`; not given: `name` is that class."""
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of the class."""
    output: str = ""
    """Which of the net's outputs is measured, by its name or number; not given: the only one, or the first."""
    target: str = ""
    """Against which column of `data.targets`; not given: the only one, or the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """Loss and measures of a net that is no Caffe file; Caffe's files say both themselves."""

    loss: str = ""
    """A function of `torch.nn.functional` (`cross_entropy`), `package.module:callable` taking `(outputs, targets)`,
    or `net`: the net's own, an output `.loss` or key `loss`. Not given: cross_entropy for classes, mse_loss for
    numbers."""
    loss_arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of the loss, as in `{ label_smoothing = 0.1 }`; a list of numbers becomes a tensor, as
    `weight` takes it."""
    measures: tuple[str | Measure, ...] = ()
    """Classes of torchmetrics by name (`["regression.R2Score"]`), or tables with `name`, `metric`, `arguments`. Not
    given: accuracy, top5 and loss for classes, loss and mean absolute error for numbers."""

    def __post_init__(self) -> None:
        names = [measure if isinstance(measure, str) else measure.name for measure in self.measures]
        require(
            len({*names, "loss"}) == len(names) + 1,
            "objective.measures",
            names,
            "two have the same name, or one that of the loss, which is always measured: give it another `name`",
        )
