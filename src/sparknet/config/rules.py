"""How a value is held to a rule: key, value, rule and remedy in one message."""

import dataclasses
import math
import re
from pathlib import PurePath
from typing import Any, cast

from sparknet.errors import ConfigError

__all__ = ["all_finite", "at_least", "require", "shortened", "told"]


def require(holds: bool, key: str, value: object, rule: str) -> None:
    """Refuse `value` of `key` unless `holds`.

    Raises:
        ConfigError: naming key, value and rule.
    """
    if holds:
        return
    keys = re.split(", | and ", key)
    if isinstance(value, tuple) and len(keys) == len(cast("tuple[object, ...]", value)):
        said = ", ".join(f"{one} is {told(each)}" for one, each in zip(keys, cast("Any", value), strict=True))
    else:
        said = f"{key} is {told(value)}"
    raise ConfigError(f"{said}; {rule}")


def told(value: object) -> str:
    """A value as configuration files have it: lists in square brackets, true and false; None is not given."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(told(each) for each in cast("Any", value)) + "]"
    return repr(str(value) if isinstance(value, PurePath) else value)


def at_least(key: str, value: float, least: float) -> None:
    """Refuse a number below `least`.

    Raises:
        ConfigError: naming key, value and rule.
    """
    require(value >= least, key, value, f"it must be at least {least:g}: set {key}")


def all_finite(section: str, values: Any) -> None:
    """Refuse numbers of a section that are nan or infinite.

    Raises:
        ConfigError: naming key and value.
    """
    # TOML can say nan and inf. inf is above every bound and nan is not 0: the other checks would let them pass.
    for setting in dataclasses.fields(values):
        value = getattr(values, setting.name)
        if isinstance(value, float):
            require(math.isfinite(value), f"{section}.{setting.name}", value, "it must be a finite number")


def shortened(text: str) -> str:
    """The first line of what may be a whole file."""
    lines = text.strip().splitlines()
    return f"{lines[0]} ..." if len(lines) > 1 else text
