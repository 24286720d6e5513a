"""The constants of an update."""

import difflib
from dataclasses import dataclass
from typing import Literal, get_args

from sparknet.caffe.solver.rules import SolverType, require, require_finite
from sparknet.errors import ConfigError

__all__ = ["UpdateRule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateRule:
    """What becomes of a gradient; the names and defaults are those of Caffe's solver file."""

    type: SolverType = "SGD"
    """How history and update follow from the gradient."""
    momentum: float = 0.0
    """μ of SGD and Nesterov, the decay of AdaDelta's averages, β1 of Adam; AdaGrad and RMSProp have none."""
    momentum2: float = 0.999
    """β2 of Adam."""
    delta: float = 1e-8
    """δ, which keeps AdaGrad, RMSProp, AdaDelta and Adam from dividing by 0."""
    rms_decay: float = 0.99
    """Decay of RMSProp's average."""
    weight_decay: float = 0.0
    """λ, times a parameter's decay_mult; goes into the gradient for every type."""
    regularization_type: Literal["L2", "L1"] = "L2"
    """Whether λ counts the weight or its sign."""
    clip_gradients: float = -1.0
    """Norm of the whole gradient above which it is scaled down to it; negative: never."""
    iter_size: int = 1
    """Batches whose gradients are summed up in `.grad` before a step, which takes their mean."""

    def __post_init__(self) -> None:
        known = get_args(SolverType)
        if self.type not in known:
            by_lower = {name.lower(): name for name in known}
            close = difflib.get_close_matches(str(self.type).lower(), by_lower, n=1)
            hint = f", did you mean {by_lower[close[0]]!r}?" if close else ""
            raise ConfigError(f"type is {self.type!r}{hint}; it must be one of {', '.join(known)}")
        require_finite(self)
        # Caffe trains with any of these values, and weights stand still, grow without end or become nan.
        below_one = "it must be at least 0 and below 1"
        if self.type == "AdaDelta":
            # Below 0 its averages of squares become negative, and their roots nan.
            require(0 <= self.momentum < 1, "momentum", self.momentum, below_one)
        # A negative one takes part of the last step back.
        require(-1 < self.momentum < 1, "momentum", self.momentum, "it must be above -1 and below 1")
        require(0 <= self.momentum2 < 1, "momentum2", self.momentum2, below_one)
        require(0 <= self.rms_decay < 1, "rms_decay", self.rms_decay, below_one)
        if self.type in ("AdaGrad", "RMSProp"):
            require(self.momentum == 0, "momentum", self.momentum, f"type {self.type} has none: leave it out")
        if self.type in ("AdaGrad", "RMSProp", "AdaDelta", "Adam"):
            require(self.delta > 0, "delta", self.delta, f"type {self.type} divides by it: it must exceed 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "it must be at least 0")
        require(
            self.regularization_type in ("L2", "L1"),
            "regularization_type",
            repr(self.regularization_type),
            "it must be 'L2' or 'L1'",
        )
        require(
            self.clip_gradients != 0,
            "clip_gradients",
            self.clip_gradients,
            "every gradient would become 0: give the largest norm, or leave it out for no clipping",
        )
        require(self.iter_size >= 1, "iter_size", self.iter_size, "it must be at least 1")

    @property
    def histories(self) -> tuple[str, ...]:
        """Keys of the tensors that an optimiser keeps per parameter, in the order of Caffe's snapshots."""
        return ("history", "history2") if self.type in ("AdaDelta", "Adam") else ("history",)
