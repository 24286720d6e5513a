"""How a replica optimises."""

import dataclasses
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from sparknet.config.rules import all_finite, at_least, require
from sparknet.errors import ConfigError

__all__ = ["ParameterGroup", "Solver"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    """Parameters that are optimised differently; each takes the first group that fits its name."""

    pattern: str
    """Of names, as in `head.*`."""
    rate_factor: float = 1.0
    """Their learning rate is that of the schedule times this."""
    weight_decay: float | None = None
    """Their own; not given: the solver's."""

    def __post_init__(self) -> None:
        all_finite("solver.groups", self)
        at_least("solver.groups.rate_factor", self.rate_factor, 0)
        if self.weight_decay is not None:
            at_least("solver.groups.weight_decay", self.weight_decay, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Solver:
    """The inner optimiser: any of torch's, with a rate that is a function of the iteration, or a Caffe solver."""

    prototxt: str = ""
    """A Caffe solver: path of a prototxt file, or its text. Besides it set only `batch_size`,
    `snapshot` and `precision`."""
    snapshot: str = ""
    """A .solverstate (or .solverstate.h5) of that solver to go on from, at its iteration."""
    snapshot_step: tuple[int, ...] = ()
    """Iteration of `snapshot`, and how many step values its rate had passed, from which a multistep rate counts on;
    not given: what the snapshot says."""
    batch_size: int = 64
    """Rows per step and worker."""
    optimizer: str = "SGD"
    """A class of `torch.optim`: `AdamW`, `RMSprop`, `Muon` …"""
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    """Other keyword arguments of that class, as in `{ betas = [0.9, 0.95] }`."""
    learning_rate: float = 0.01
    """Base rate."""
    momentum: float | None = None
    """Of SGD (0.9 where not given), RMSprop (0) and Muon (0.95); others take theirs in `arguments`."""
    weight_decay: float | None = None
    """As the optimiser has it: AdamW takes it off the weights, SGD adds it to the gradient. Not given:
    the optimiser's own default."""
    decay_norms_and_biases: bool = True
    """Whether weight decay is of normalisation layers and biases too; false leaves them (and all parameters of one
    axis) out."""
    groups: tuple[ParameterGroup, ...] = ()
    """Parameters with another rate or weight decay, by patterns of their names."""
    policy: Literal["fixed", "step", "multistep", "cosine", "poly", "linear"] = "fixed"
    """Rate over iterations (one iteration = one local step): constant, stepped down each `step_size` or at `steps`,
    or falling to 0 at the end of the run along half a cosine, a power or a line."""
    gamma: float = 0.1
    """Policies step and multistep: the factor at each step."""
    step_size: int | None = None
    """Policy step: iterations between steps."""
    steps: tuple[int, ...] = ()
    """Policy multistep: the iterations at which it steps, rising."""
    power: float = 1.0
    """Policy poly: (1 - iteration / total)^power."""
    warmup_steps: int = 0
    """Iterations in which the rate rises to the policy's, in a line from its first step on."""
    clip_norm: float | None = None
    """Gradients of a greater norm, over all parameters, are scaled down to it; not given: none is."""
    accumulate: int = 1
    """Batches whose gradients are averaged before each step."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward and backward pass, by autocast; weights and their updates are float32 in any case. fp16 scales
    the loss, and leaves out steps whose gradients overflow."""

    def __post_init__(self) -> None:
        all_finite("solver", self)
        if self.prototxt:
            _leave_to_prototxt(self)
        require(
            not self.snapshot or bool(self.prototxt),
            "solver.snapshot",
            self.snapshot,
            "it belongs to a Caffe solver: set solver.prototxt",
        )
        require(
            not self.snapshot_step
            or (bool(self.snapshot) and len(self.snapshot_step) == 2 and min(self.snapshot_step) >= 0),
            "solver.snapshot_step",
            list(self.snapshot_step),
            "it is what solver.snapshot says, two numbers of at least 0: leave it out",
        )
        at_least("solver.batch_size", self.batch_size, 1)
        require(self.learning_rate > 0, "solver.learning_rate", self.learning_rate, "it must exceed 0")
        if self.momentum is not None:
            require(0 <= self.momentum < 1, "solver.momentum", self.momentum, "it must be at least 0 and below 1")
        if self.weight_decay is not None:
            at_least("solver.weight_decay", self.weight_decay, 0)
        at_least("solver.warmup_steps", self.warmup_steps, 0)
        at_least("solver.accumulate", self.accumulate, 1)
        require(self.power > 0, "solver.power", self.power, "it must exceed 0")
        require(self.gamma > 0, "solver.gamma", self.gamma, "it must exceed 0")
        if self.clip_norm is not None:
            require(
                self.clip_norm > 0, "solver.clip_norm", self.clip_norm, "it must exceed 0: leave it out for none"
            )
        for key in ("lr", "momentum", "weight_decay", "params"):
            # The other name wins or loses silently otherwise.
            own = {"lr": "learning_rate", "params": "groups"}.get(key, key)
            require(
                key not in self.arguments,
                f"solver.arguments.{key}",
                self.arguments.get(key),
                f"it has a key of its own: set solver.{own}",
            )
        _check_steps(self)


def _check_steps(solver: Solver) -> None:
    stepped = solver.step_size is not None and solver.step_size >= 1
    require(
        stepped if solver.policy == "step" else solver.step_size is None,
        "solver.step_size",
        solver.step_size,
        "policy step needs it, at least 1, and no other takes it: --set solver.step_size= leaves it out",
    )
    require(
        all(before < step for before, step in pairwise((0, *solver.steps))),
        "solver.steps",
        list(solver.steps),
        "they must be at least 1 and rising",
    )
    require(
        bool(solver.steps) == (solver.policy == "multistep"),
        "solver.steps",
        list(solver.steps),
        "policy multistep needs them, and no other takes them: --set solver.steps=[] leaves them out",
    )


_BESIDE_PROTOTXT = ("prototxt", "snapshot", "snapshot_step", "batch_size", "precision")


def _leave_to_prototxt(solver: Solver) -> None:
    for setting in dataclasses.fields(solver):
        value = getattr(solver, setting.name)
        # Told by the default: a value that is set to just that does no harm, as the file's own still counts.
        if setting.name not in _BESIDE_PROTOTXT and value != _default(setting):
            raise ConfigError(
                f"solver.{setting.name} is {value!r}; solver.prototxt says how to optimise: set it in that file, "
                "or leave solver.prototxt out"
            )


def _default(setting: "dataclasses.Field[Any]") -> object:
    return setting.default if setting.default_factory is dataclasses.MISSING else setting.default_factory()
