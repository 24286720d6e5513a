"""The choices that a solver file has, and how a rule that its values break is told."""

import dataclasses
import math
from typing import Any, Literal

from sparknet.errors import ConfigError

__all__ = ["Policy", "SolverType", "require", "require_finite"]

Policy = Literal["fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid"]
SolverType = Literal["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"]


def require(holds: bool, key: str, value: object, rule: str) -> None:
    """Raise the error of a key whose value breaks a rule.

    Raises:
        ConfigError: it does not hold.
    """
    if not holds:
        raise ConfigError(f"{key} is {value}; {rule}")


def require_finite(settings: Any) -> None:
    """Hold every float of a dataclass against infinity and nan, which comparisons would let pass.

    Raises:
        ConfigError: one is not finite.
    """
    for setting in dataclasses.fields(settings):
        value = getattr(settings, setting.name)
        if isinstance(value, float):
            require(math.isfinite(value), setting.name, value, "it must be a finite number")
