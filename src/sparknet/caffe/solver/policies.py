"""Caffe's seven learning-rate policies (sgd_solver.cpp, `SGDSolver::GetLearningRate`)."""

import difflib
import math
from dataclasses import dataclass
from typing import get_args

from sparknet.caffe.solver.rules import Policy, require, require_finite
from sparknet.errors import ConfigError

__all__ = ["RatePolicy", "RateSchedule", "policy_rate", "policy_step", "settled_step"]

_NEEDS: dict[Policy, tuple[str, ...]] = {
    "fixed": (),
    "step": ("gamma", "stepsize"),
    "exp": ("gamma",),
    "inv": ("gamma", "power"),
    "multistep": ("gamma", "stepvalue"),
    "poly": ("power", "max_iter"),
    "sigmoid": ("gamma", "stepsize"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RatePolicy:
    """The rate as a function of the iteration; the names are those of Caffe's solver file."""

    base_lr: float
    """Rate that the policy starts from, b."""
    lr_policy: Policy = "fixed"
    """fixed b; step b γ^⌊i/stepsize⌋; exp b γ^i; inv b (1 + γ i)^-power; multistep b γ^(step values passed);
    poly b (1 - i/max_iter)^power; sigmoid b / (1 + e^(-γ (i - stepsize)))."""
    gamma: float | None = None
    """γ; for step, exp, inv, multistep and sigmoid."""
    power: float | None = None
    """For inv and poly."""
    stepsize: int | None = None
    """Iterations between steps; for sigmoid, where its middle is."""
    stepvalue: tuple[int, ...] = ()
    """Iterations at which multistep steps."""
    max_iter: int | None = None
    """Iterations of the whole run; poly ends there at 0."""

    def __post_init__(self) -> None:
        known = get_args(Policy)
        if self.lr_policy not in known:
            close = difflib.get_close_matches(str(self.lr_policy).lower(), known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"lr_policy is {self.lr_policy!r}{hint}; it must be one of {', '.join(known)}")
        require_finite(self)
        require(self.base_lr >= 0, "base_lr", self.base_lr, "it must be at least 0")
        for key in _NEEDS[self.lr_policy]:
            value: object = getattr(self, key)
            given = value is not None and value != ()
            require(given, key, "missing", f"lr_policy {self.lr_policy} needs it: set {key}")
        # Sigmoid's gamma is a slope and falls where it is negative; of the others it is a factor.
        if self.gamma is not None and self.lr_policy != "sigmoid":
            require(self.gamma >= 0, "gamma", self.gamma, "it must be at least 0")
        if self.stepsize is not None and self.lr_policy == "step":
            require(self.stepsize >= 1, "stepsize", self.stepsize, "it must be at least 1")
        if self.max_iter is not None and self.lr_policy == "poly":
            require(self.max_iter >= 1, "max_iter", self.max_iter, "policy poly ends there: it must be at least 1")


def policy_step(policy: RatePolicy, iteration: int, current_step: int) -> int:
    """The step count that holds at this iteration, given that of the iteration before (0 at first).

    Multistep passes at most one step value an iteration, so that its count is a state and is kept in snapshots.
    """
    match policy.lr_policy:
        case "step":
            # By the iteration alone, as Caffe recounts it at every step: no state to lose.
            return math.floor(iteration / (policy.stepsize or 1))
        case "multistep":
            due = current_step < len(policy.stepvalue) and iteration >= policy.stepvalue[current_step]
            return current_step + due
        case _:
            return current_step


def settled_step(policy: RatePolicy, iteration: int, *, since: tuple[int, int] = (0, 0)) -> int:
    """The step count that a run has at this iteration: `policy_step` without a state.

    The k-th step value v takes effect at t(k) = max(v, t(k-1) + 1), since one counts per iteration.

    Args:
        policy: of the run.
        iteration: counted from 0.
        since: the iteration that the run began with, and the step count that it was given: those of a snapshot,
            which may be of another policy.
    """
    begun, passed = since
    if policy.lr_policy != "multistep":
        return policy_step(policy, iteration, passed)
    effective = begun - 1
    for value in policy.stepvalue[passed:]:
        effective = max(value, effective + 1)
        if effective > iteration:
            break
        passed += 1
    return passed


def policy_rate(policy: RatePolicy, iteration: int, current_step: int) -> float:
    """The rate at an iteration, counted from 0.

    Args:
        policy: the policy and its constants.
        iteration: finished iterations.
        current_step: for multistep, what `policy_step` says for this iteration; others do not look at it.

    Raises:
        ConfigError: the formula gives no rate here, as poly's may past its max_iter.
    """
    base, gamma, power = policy.base_lr, policy.gamma or 0.0, policy.power or 0.0
    match policy.lr_policy:
        case "fixed":
            rate = base
        case "step":
            rate = base * _power(gamma, policy_step(policy, iteration, 0))
        case "exp":
            rate = base * _power(gamma, iteration)
        case "inv":
            rate = base * _power(1 + gamma * iteration, -power)
        case "multistep":
            rate = base * _power(gamma, current_step)
        case "poly":
            rate = base * _power(1 - iteration / (policy.max_iter or 1), power)
        case "sigmoid":
            rate = base * _logistic(gamma * (iteration - (policy.stepsize or 0)))
    # Caffe would go on and step with it; nan fails the comparison too.
    if not 0 <= rate < math.inf:
        raise ConfigError(
            f"lr_policy {policy.lr_policy} gives the rate {rate:g} at iteration {iteration}; it must be finite and "
            "not negative: change its constants, or end the run at max_iter"
        )
    return rate


class RateSchedule:
    """A policy on its way through the iterations.

    Attributes:
        current_step: steps passed so far; part of a solver's snapshot.
    """

    def __init__(self, policy: RatePolicy, current_step: int = 0) -> None:
        self.policy = policy
        self.current_step = current_step

    def peek(self, iteration: int) -> float:
        """The rate that `advance` would give."""
        return policy_rate(self.policy, iteration, policy_step(self.policy, iteration, self.current_step))

    def advance(self, iteration: int) -> float:
        """The rate of this iteration, which is to be asked for once; the step count moves on."""
        self.current_step = policy_step(self.policy, iteration, self.current_step)
        return policy_rate(self.policy, iteration, self.current_step)


def _power(base: float, exponent: float) -> float:
    """C's pow: infinity and nan where Python raises."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf
    except ValueError:
        return math.inf if base == 0 else math.nan


def _logistic(value: float) -> float:
    """1 / (1 + e^-value), for any value."""
    # Two forms, since exp of a large positive number overflows, which Python raises.
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    grown = math.exp(value)
    return grown / (1 + grown)
