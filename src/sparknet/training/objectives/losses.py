"""What is minimised: a function of torch's, one of the user's, or what the net itself gives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor
from torch.nn import functional

from sparknet.caffe.layers import Legal
from sparknet.config import Objective as ObjectiveSection
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import ConfigError, NetError
from sparknet.training.objectives.given_code import Code
from sparknet.training.objectives.label_rules import LabelRule
from sparknet.training.objectives.loss_arguments import (
    check_call,
    check_weighted,
    checked_arguments,
    import_callable,
    keywords,
    moved,
    nearest,
)
from sparknet.training.objectives.net_call import output_of

__all__ = ["OWN", "Loss", "build_loss", "check_scores", "counted", "find_loss", "fitted", "is_class", "loss_name"]

OWN = "net"
"""`objective.loss` of a net that computes its loss itself."""
_IGNORED = -100
"""Class number of what does not count, in torch's losses, where no `ignore_index` is given."""
_OF_CLASSES = ("cross_entropy", "nll_loss", "multi_margin_loss")
"""Functions whose target is the number of a class; the others take one number for each of the net's."""
_OF_LISTS = ("multilabel_margin_loss",)
"""Functions whose target is a list of class numbers, as long as there are classes."""
_BY_BATCH = ("weight", "pos_weight", "ignore_index", "reduction")
"""Arguments with which the mean over a batch is not the mean of its rows."""


class Loss(Protocol):
    """The scalar to be minimised."""

    by_row: bool
    """It is the mean of a number for each row, so that it does not matter how rows are cut into batches."""

    def __call__(self, outputs: object, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch, of what the net has returned for it.

        Raises:
            NetError: the net returned something that the loss does not take.
        """
        ...

    def label_rules(self, outputs: object) -> Sequence[LabelRule]:
        """Which numbers of the targets it takes, for what the net has returned, on any device; (): any."""
        ...

    def to(self, device: torch.device) -> Self:
        """Move tensors of its own."""
        ...


def build_loss(section: ObjectiveSection, rows: RowSchema, *, net: str, code: Code | None = None) -> Loss:
    """The loss that the configuration names, or the one that suits the target.

    Args:
        section: names it.
        rows: which targets there are, and weights.
        net: the net's name, for messages.
        code: what a program gave by name.

    Raises:
        ConfigError: there is no such loss, or it does not take these targets, weights or arguments.
    """
    name = loss_name(section, rows)
    if name == OWN:
        return _OwnLoss(section, rows, net=net)
    if ":" in name:
        return _CallableLoss(import_callable("objective.loss", name, code or {}), section, rows, net=net)
    return _FunctionalLoss(name, section.loss_arguments, rows, net=net)


def find_loss(section: ObjectiveSection, code: Code) -> None:
    """Find what is wrong with the name of a loss, before it is known what the rows are.

    Raises:
        ConfigError: there is no such function.
    """
    if ":" in section.loss:
        import_callable("objective.loss", section.loss, code)
    elif section.loss not in ("", OWN):
        _functional(section.loss)


def _functional(name: str) -> Callable[..., Tensor]:
    function = getattr(functional, name, None)
    if not callable(function):
        known = [one for one in dir(functional) if one.endswith("loss") or one == "cross_entropy"]
        raise ConfigError(
            f"objective.loss is {name!r}; torch.nn.functional has no such function: {nearest(name, known)} A "
            "function of yours is given as 'package.module:callable'"
        )
    return cast("Callable[..., Tensor]", function)


def fitted(output: Tensor, target: Tensor, *, net: str) -> tuple[Tensor, Tensor]:
    """An output and a target of numbers in one shape.

    Torch's own rules would make [n, n] differences of [n, 1] and [n].

    Raises:
        NetError: they differ in more than an axis of length 1 at the end.
    """
    if output.dim() == target.dim() + 1 and output.shape[-1] == 1:
        output = output.squeeze(-1)
    elif target.dim() == output.dim() + 1 and target.shape[-1] == 1:
        target = target.squeeze(-1)
    if output.shape != target.shape:
        raise NetError(
            f"net {net} returned {tuple(output.shape)} and the target is {tuple(target.shape)}; both must have one "
            "shape: correct the net's last layer"
        )
    return output, target if target.is_floating_point() else target.to(output.dtype)


class _FunctionalLoss:
    """A function of `torch.nn.functional` over one output and the only target."""

    def __init__(self, name: str, arguments: Mapping[str, Any], rows: RowSchema, *, net: str) -> None:
        function = _functional(name)
        if len(rows.targets) != 1:
            raise ConfigError(
                f"objective.loss is {name!r}, which takes one target, and there are "
                f"{', '.join(column.name for column in rows.targets)}: give a function of yours that takes them "
                "all, objective.loss='package.module:callable'"
            )
        self._function = function
        self._name, self._net = name, net
        self._target, self._weight = rows.targets[0], rows.weight
        self._arguments = checked_arguments(name, self._function, arguments)
        # Of rows with several classes some may be filled up with the number that does not count.
        self._several = name in _OF_CLASSES and bool(self._target.shape) and self._target.dtype == "int64"
        self.by_row = not self._several and not any(key in arguments for key in _BY_BATCH)
        check_call(name, self._function, 2, self._arguments)
        self._check_target()
        if rows.weight:
            check_weighted(name, self._function, self._arguments)

    def __call__(self, outputs: object, batch: Mapping[str, Tensor]) -> Tensor:
        if not self._weight:
            return self._call(outputs, batch, **self._arguments)
        by_row = self._call(outputs, batch, **self._arguments, reduction="none")
        weights = batch[self._weight]
        by_row = by_row.reshape(len(weights), -1)
        # Of what has several numbers for each row, the mean of those that count.
        shares = by_row.shape[1]
        if self._several:
            shares = counted(batch[self._target.name], self._arguments).reshape(by_row.shape).sum(1).clamp_min(1)
        by_row = by_row.sum(1) / shares
        # A batch all of whose rows weigh nothing has nothing to say, and 0/0 would be the end of the weights.
        return (by_row * weights).sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)

    def label_rules(self, outputs: object) -> Sequence[LabelRule]:
        column, output = self._target, output_of(outputs, "", net=self._net)
        if self._name not in _OF_CLASSES or column.dtype != "int64" or output.dim() != len(column.shape) + 2:
            return ()
        ignored = self._arguments.get("ignore_index", _IGNORED) if self._name in _OF_CLASSES[:2] else None
        legal = Legal(
            most=output.shape[1] - 1,
            whole=True,
            ignored=ignored,
            ignored_by="ignore_index in objective.loss_arguments" if ignored is not None else "",
            room=f"the number of scores that net {self._net} returns (the argument `classes` is given to it)",
        )
        reader = f"objective.loss {self._name} over net {self._net}"
        return (LabelRule(column=column.name, reader=reader, legal=legal),)

    def to(self, device: torch.device) -> Self:
        self._arguments = moved(self._arguments, device)
        return self

    def _check_target(self) -> None:
        column = self._target
        if self._name in (*_OF_CLASSES[1:], *_OF_LISTS) and column.dtype != "int64":
            raise ConfigError(
                f"objective.loss is {self._name!r}, whose target is the number of a class, and {column.name} is "
                f"{column.dtype} of shape {column.shape}: take cross_entropy, which takes probabilities too"
            )
        weight = self._arguments.get("weight")
        if (
            self._name in _OF_CLASSES
            and isinstance(weight, Tensor)
            and column.classes not in (None, 0, len(weight))
        ):
            raise ConfigError(
                f"objective.loss_arguments.weight has {len(weight)} numbers and {column.name} has {column.classes} "
                "classes: give one for each"
            )

    def _call(self, outputs: object, batch: Mapping[str, Tensor], **arguments: Any) -> Tensor:
        output, target = output_of(outputs, "", net=self._net), batch[self._target.name]
        if self._name in _OF_CLASSES:
            check_scores(output, target, net=self._net)
        elif self._name in _OF_LISTS:
            _check_lists(output, target, net=self._net)
        else:
            output, target = fitted(output, target, net=self._net)
        try:
            return self._function(output, target, **arguments)
        except IndexError as error:
            # So torch tells a label out of range, on a CPU.
            raise NetError(
                f"net {self._net} returned {tuple(output.shape)} and a label is {int(target.max())}; it must "
                "return a score for every class: build it with the `classes` that it is given"
            ) from error


class _CallableLoss:
    """A function of the user's: `(outputs, targets)`, and `weights` if it takes them."""

    by_row = False

    def __init__(
        self, function: Callable[..., Any], section: ObjectiveSection, rows: RowSchema, *, net: str
    ) -> None:
        self._function = function
        self._net = net
        self._targets = tuple(column.name for column in rows.targets)
        self._weight = rows.weight
        self._arguments = checked_arguments(section.loss, self._function, section.loss_arguments)
        given = {"weights": None} if rows.weight else {}
        if rows.weight and "weights" not in keywords(self._function):
            raise ConfigError(
                f"data.weight is {rows.weight!r} and {section.loss} has no parameter `weights`: add one, or leave "
                "data.weight out"
            )
        check_call(section.loss, self._function, 2, {**self._arguments, **given})

    def __call__(self, outputs: object, batch: Mapping[str, Tensor]) -> Tensor:
        targets = {name: batch[name] for name in self._targets}
        given = {"weights": batch[self._weight]} if self._weight else {}
        only = targets[self._targets[0]] if len(targets) == 1 else targets
        loss: object = self._function(outputs, only, **given, **self._arguments)
        return _scalar(loss, f"the loss of net {self._net}")

    def label_rules(self, outputs: object) -> Sequence[LabelRule]:
        del outputs  # what a function of the user's takes, only that knows
        return ()

    def to(self, device: torch.device) -> Self:
        self._arguments = moved(self._arguments, device)
        return self


class _OwnLoss:
    """What the net gives itself, as `loss` among its outputs."""

    by_row = False

    def __init__(self, section: ObjectiveSection, rows: RowSchema, *, net: str) -> None:
        self._net = net
        for key, value in (("objective.loss_arguments", section.loss_arguments), ("data.weight", rows.weight)):
            if value:
                raise ConfigError(
                    f"{key} is {value!r} and objective.loss is 'net': what the net computes cannot be told more; "
                    "leave it out"
                )

    def __call__(self, outputs: object, batch: Mapping[str, Tensor]) -> Tensor:
        if isinstance(outputs, Mapping):
            found: object = cast("Mapping[str, object]", outputs).get("loss")
        else:
            found = getattr(outputs, "loss", None)
        if found is None:
            raise NetError(
                f"net {self._net} returned {type(outputs).__name__} without a loss, and objective.loss is 'net': "
                "return it as .loss or ['loss'], or name a loss"
            )
        return _scalar(found, f"the loss that net {self._net} returned")

    def label_rules(self, outputs: object) -> Sequence[LabelRule]:
        del outputs  # what the net takes, only that knows
        return ()

    def to(self, device: torch.device) -> Self:
        return self


def loss_name(section: ObjectiveSection, rows: RowSchema) -> str:
    """`objective.loss`, or where it is not given the loss that suits the target.

    Raises:
        ConfigError: there are several targets, which nothing but a function of the user's brings together.
    """
    if section.loss:
        return section.loss
    if len(rows.targets) != 1:
        raise ConfigError(
            f"the targets are {', '.join(column.name for column in rows.targets)} and objective.loss is not "
            "given; of several targets nothing says how they count together: set "
            "objective.loss='package.module:callable'"
        )
    return "cross_entropy" if is_class(rows.targets[0]) else "mse_loss"


def is_class(column: Column) -> bool:
    """Whether a target says classes, and not numbers."""
    return column.classes is not None or column.dtype == "int64"


def counted(labels: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """Which of class numbers [n, ...] count, bool of their shape: all but `ignore_index`."""
    return labels != arguments.get("ignore_index", _IGNORED)


def check_scores(output: Tensor, target: Tensor, *, net: str) -> None:
    """Hold scores [n, classes, ...] against class numbers int64 [n, ...] or probabilities [n, classes, ...].

    Raises:
        NetError: their shapes do not agree.
    """
    if target.is_floating_point():
        expected, given = tuple(target.shape), tuple(output.shape)
        if expected != given:
            raise NetError(
                f"net {net} returned {given}; probabilities of the classes are {expected}: both must agree"
            )
        return
    if output.dim() != target.dim() + 1 or len(output) != len(target) or output.shape[2:] != target.shape[1:]:
        expected = ", ".join(["classes", *map(str, target.shape[1:])])
        raise NetError(f"net {net} returned {tuple(output.shape)}; it must return [{len(target)}, {expected}]")


def _check_lists(output: Tensor, target: Tensor, *, net: str) -> None:
    if output.shape != target.shape:
        raise NetError(
            f"net {net} returned {tuple(output.shape)} and the lists of classes are {tuple(target.shape)}; both "
            "must have one shape: fill the lists up with -1 to as many as there are classes"
        )


def _scalar(loss: object, what: str) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise NetError(f"{what} is {found}; it must be a tensor of one number: take the mean of it")
    return loss.reshape(())
