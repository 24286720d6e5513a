"""When and how replicas agree."""

from dataclasses import dataclass
from typing import Literal

from sparknet.config.rules import all_finite, at_least, require

__all__ = ["OuterOptimiser", "Sync"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OuterOptimiser:
    """SGD on the averaged weights; rate 1 without momentum is plain averaging."""

    learning_rate: float
    momentum: float
    nesterov: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Sync:
    """When and how the replicas agree."""

    strategy: Literal["average", "diloco", "none"] = "average"
    """Average the weights, step an outer optimiser on their mean, or train each replica by itself."""
    local_steps: int = 10
    """Steps between synchronisations (τ in SparkNet, H in DiLoCo)."""
    pace: Literal["fixed", "balanced"] = "fixed"
    """Every worker `local_steps` steps, or each as many as fit the median worker's time for them."""
    outer_learning_rate: float | None = None
    """Strategy diloco only; its preset is 0.7."""
    outer_momentum: float | None = None
    """Strategy diloco only; its preset is 0.9."""
    outer_nesterov: bool | None = None
    """Strategy diloco only; its preset is true."""
    inner_state: Literal["keep", "reset"] = "keep"
    """The inner optimiser's momentum after a synchronisation: stays with its worker, or starts at zero."""

    def __post_init__(self) -> None:
        all_finite("sync", self)
        at_least("sync.local_steps", self.local_steps, 1)
        # None and not the presets as defaults: else nobody could tell a preset from what was set in vain.
        given = {
            "sync.outer_learning_rate": self.outer_learning_rate,
            "sync.outer_momentum": self.outer_momentum,
            "sync.outer_nesterov": self.outer_nesterov,
        }
        for key, value in given.items():
            require(
                value is None or self.strategy == "diloco",
                key,
                value,
                f"strategy {self.strategy} has no outer optimiser: set sync.strategy='diloco'",
            )
        # What comes out is checked, presets filled in.
        outer = self.outer
        require(outer.learning_rate > 0, "sync.outer_learning_rate", outer.learning_rate, "it must be more than 0")
        require(
            0 <= outer.momentum < 1,
            "sync.outer_momentum",
            outer.momentum,
            "it must be at least 0 and below 1",
        )

    @property
    def outer(self) -> OuterOptimiser:
        """The outer optimiser that the strategy stands for, presets filled in."""
        if self.strategy != "diloco":
            return OuterOptimiser(learning_rate=1.0, momentum=0.0, nesterov=False)
        return OuterOptimiser(
            learning_rate=0.7 if self.outer_learning_rate is None else self.outer_learning_rate,
            momentum=0.9 if self.outer_momentum is None else self.outer_momentum,
            nesterov=True if self.outer_nesterov is None else self.outer_nesterov,
        )
