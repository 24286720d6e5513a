"""How a loss is called: finding a function of the user's, and its arguments held against its signature."""

import difflib
import importlib
import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sparknet.errors import ConfigError
from sparknet.training.objectives.given_code import Code

__all__ = ["check_call", "check_weighted", "checked_arguments", "import_callable", "keywords", "moved", "nearest"]


def import_callable(key: str, name: str, code: Code) -> Callable[..., Any]:
    """The callable that `package.module:callable` names.

    Args:
        key: the setting, for messages.
        name: its value.
        code: what a program gave, which comes first.

    Raises:
        ConfigError: the form is another, the module cannot be imported, or it has no such callable.
    """
    if name in code:
        return code[name]
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
        raise ConfigError(f"{key} is {name!r}; {module_name} has no such callable: {nearest(attribute, known)}")
    return cast("Callable[..., Any]", found)


def checked_arguments(name: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`objective.loss_arguments` as the function is given them: lists of numbers as float32 tensors.

    Raises:
        ConfigError: it has no such argument.
    """
    known = keywords(function)
    for key in arguments:
        if known and key not in known and not _takes_any(function):
            raise ConfigError(f"objective.loss_arguments.{key} is no argument of {name}: {nearest(key, known)}")
    return {key: _as_tensor(value) for key, value in arguments.items()}


def _as_tensor(value: object) -> object:
    # No function of torch's takes a list of numbers.
    if not isinstance(value, list | tuple) or not value:
        return value
    values = cast("Sequence[object]", value)
    # Lists of words are the user's own function's.
    if not all(isinstance(one, list | tuple | numbers.Real) for one in values):
        return values
    try:
        return torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError):  # of lists of words, or of different lengths
        return values


def moved(arguments: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Arguments with their tensors on the device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in arguments.items()}


def check_call(name: str, function: Callable[..., Any], places: int, keywords: Mapping[str, Any]) -> None:
    """Hold a call with so many values and these arguments against the function, before any batch.

    Raises:
        ConfigError: it does not take them, or needs more.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin: it judges its arguments itself
        return
    try:
        signature.bind(*[None] * places, **keywords)
    except TypeError as error:
        remedy = (
            "set data.weight to the column of the weights, or give it a default"
            if "weights" in signature.parameters and "weights" not in keywords
            else "set objective.loss_arguments, or give a function of yours, 'package.module:callable'"
        )
        raise ConfigError(
            f"objective.loss is {name!r}, which is called with outputs and targets and takes {signature}: {error}: "
            f"{remedy}"
        ) from error


def check_weighted(name: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse a function of torch's that gives no number for each row.

    Raises:
        ConfigError: it has no `reduction`, or is told one.
    """
    if "reduction" in arguments:
        raise ConfigError(
            f"objective.loss_arguments.reduction is {arguments['reduction']!r} and data.weight is given; one says "
            "how rows count: leave the other out"
        )
    if "reduction" not in keywords(function):
        raise ConfigError(
            f"data.weight is given and {name} has no `reduction`, so that rows cannot be weighted: give a function "
            "of yours with a parameter `weights`, objective.loss='package.module:callable'"
        )


def _takes_any(function: Callable[..., Any]) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in inspect.signature(function).parameters.values())


def keywords(function: Callable[..., Any]) -> list[str]:
    """Names of a function's parameters; none where it does not say."""
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:  # a builtin: it judges its arguments itself
        return []


def nearest(name: str, known: list[str]) -> str:
    """What may have been meant, for a message."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known)) or 'none'}."
