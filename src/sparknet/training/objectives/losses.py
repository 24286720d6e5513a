"""What is minimised: a function of torch's, one of the user's, or what the net itself gives."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor
from torch.nn import functional

from sparknet.config import Objective as ObjectiveSection
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import ConfigError, NetError
from sparknet.training.objectives.net_call import output_of

__all__ = ["Loss", "build_loss", "fitted", "import_callable"]

OWN = "net"
"""`objective.loss` of a net that computes its loss itself."""
_OF_CLASSES = ("cross_entropy", "nll_loss", "multi_margin_loss", "multilabel_margin_loss")
"""Functions whose target is the number of a class; the others take one number for each of the net's."""
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

    def to(self, device: torch.device) -> Self:
        """Move tensors of its own."""
        ...


def build_loss(section: ObjectiveSection, rows: RowSchema, *, net: str) -> Loss:
    """The loss that the configuration names, or the one that suits the target.

    Args:
        section: names it.
        rows: which targets there are, and weights.
        net: the net's name, for messages.

    Raises:
        ConfigError: there is no such loss, or it does not take these targets, weights or arguments.
    """
    name = section.loss or _default(rows)
    if name == OWN:
        return _OwnLoss(section, rows, net=net)
    if ":" in name:
        return _CallableLoss(section, rows, net=net)
    return _FunctionalLoss(name, section.loss_arguments, rows, net=net)


def import_callable(key: str, name: str) -> Callable[..., Any]:
    """The callable that `package.module:callable` names.

    Args:
        key: the setting, for messages.
        name: its value.

    Raises:
        ConfigError: the form is another, the module cannot be imported, or it has no such callable.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{key} is {name!r}; the form is 'package.module:callable'")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's: it may fail in any way
        raise ConfigError(
            f"{key} is {name!r}; importing {module_name} failed: {type(error).__name__}: {error}: correct the "
            "module, or put its directory on PYTHONPATH"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [one for one, value in vars(module).items() if callable(value) and not one.startswith("_")]
        raise ConfigError(f"{key} is {name!r}; {module_name} has no such callable: {_nearest(attribute, known)}")
    return cast("Callable[..., Any]", found)


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
        function = getattr(functional, name, None)
        if not callable(function):
            known = [one for one in dir(functional) if one.endswith("loss") or one == "cross_entropy"]
            raise ConfigError(
                f"objective.loss is {name!r}; torch.nn.functional has no such function: {_nearest(name, known)} A "
                "function of yours is given as 'package.module:callable'"
            )
        if len(rows.targets) != 1:
            raise ConfigError(
                f"objective.loss is {name!r}, which takes one target, and there are "
                f"{', '.join(column.name for column in rows.targets)}: give a function of yours that takes them "
                "all, objective.loss='package.module:callable'"
            )
        self._function = cast("Callable[..., Tensor]", function)
        self._name, self._net = name, net
        self._target, self._weight = rows.targets[0], rows.weight
        self._arguments = _checked_arguments(name, self._function, arguments)
        self.by_row = not any(key in arguments for key in _BY_BATCH)
        if rows.weight and "reduction" in arguments:
            raise ConfigError(
                "objective.loss_arguments.reduction and data.weight are given; one says how rows count"
            )

    def __call__(self, outputs: object, batch: Mapping[str, Tensor]) -> Tensor:
        if not self._weight:
            return self._call(outputs, batch, **self._arguments)
        by_row = self._call(outputs, batch, **self._arguments, reduction="none")
        weights = batch[self._weight]
        # Of what has several numbers for each row, a row's mean.
        by_row = by_row.view(len(weights), -1).mean(1)
        return (by_row * weights).sum() / weights.sum()

    def to(self, device: torch.device) -> Self:
        self._arguments = {
            key: value.to(device) if isinstance(value, Tensor) else value for key, value in self._arguments.items()
        }
        return self

    def _call(self, outputs: object, batch: Mapping[str, Tensor], **arguments: Any) -> Tensor:
        output, target = output_of(outputs, "", net=self._net), batch[self._target.name]
        if self._name in _OF_CLASSES:
            _check_scores(output, target, net=self._net)
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

    def __init__(self, section: ObjectiveSection, rows: RowSchema, *, net: str) -> None:
        self._function = import_callable("objective.loss", section.loss)
        self._net = net
        self._targets = tuple(column.name for column in rows.targets)
        self._weight = rows.weight
        self._arguments = _checked_arguments(section.loss, self._function, section.loss_arguments)
        if rows.weight and "weights" not in _keywords(self._function):
            raise ConfigError(
                f"data.weight is {rows.weight!r} and {section.loss} has no parameter `weights`: add one, or leave "
                "data.weight out"
            )

    def __call__(self, outputs: object, batch: Mapping[str, Tensor]) -> Tensor:
        targets = {name: batch[name] for name in self._targets}
        given = {"weights": batch[self._weight]} if self._weight else {}
        only = targets[self._targets[0]] if len(targets) == 1 else targets
        loss: object = self._function(outputs, only, **given, **self._arguments)
        return _scalar(loss, f"the loss of net {self._net}")

    def to(self, device: torch.device) -> Self:
        self._arguments = {
            key: value.to(device) if isinstance(value, Tensor) else value for key, value in self._arguments.items()
        }
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

    def to(self, device: torch.device) -> Self:
        return self


def _default(rows: RowSchema) -> str:
    if len(rows.targets) != 1:
        raise ConfigError(
            f"the targets are {', '.join(column.name for column in rows.targets)} and objective.loss is not "
            "given; of several targets nothing says how they count together: set "
            "objective.loss='package.module:callable'"
        )
    return "cross_entropy" if _is_class(rows.targets[0]) else "mse_loss"


def _is_class(column: Column) -> bool:
    return column.classes is not None or column.dtype == "int64"


def _check_scores(output: Tensor, target: Tensor, *, net: str) -> None:
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


def _scalar(loss: object, what: str) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise NetError(f"{what} is {found}; it must be a tensor of one number: take the mean of it")
    return loss.reshape(())


def _checked_arguments(name: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    known = _keywords(function)
    for key in arguments:
        if known and key not in known:
            raise ConfigError(f"objective.loss_arguments.{key} is no argument of {name}: {_nearest(key, known)}")
    # Lists in TOML are tensors here: no function of torch's takes a list of numbers.
    return {
        key: torch.tensor(value, dtype=torch.float32) if isinstance(value, list | tuple) else value
        for key, value in arguments.items()
    }


def _keywords(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:  # a builtin: it judges its arguments itself
        return []


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known)) or 'none'}."
