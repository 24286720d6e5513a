"""The seven rate policies: formulas, the multistep state, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparknet.caffe.solver.policies import RatePolicy, RateSchedule, policy_rate, policy_step, settled_step
from sparknet.errors import ConfigError

step_values = st.lists(st.integers(0, 40), min_size=1, max_size=8).map(lambda values: tuple(sorted(values)))


def multistep(values: tuple[int, ...]) -> RatePolicy:
    return RatePolicy(base_lr=0.1, lr_policy="multistep", gamma=0.5, stepvalue=values)


def rates(policy: RatePolicy, iterations: int = 60) -> list[float]:
    schedule = RateSchedule(policy)
    return [schedule.advance(iteration) for iteration in range(iterations)]


def test_the_formulas():
    at = np.arange(60)
    known = {
        RatePolicy(base_lr=0.3): np.full(60, 0.3),
        RatePolicy(base_lr=0.3, lr_policy="step", gamma=0.5, stepsize=7): 0.3 * 0.5 ** (at // 7),
        RatePolicy(base_lr=0.3, lr_policy="exp", gamma=0.9): 0.3 * 0.9**at,
        RatePolicy(base_lr=0.3, lr_policy="inv", gamma=0.1, power=0.75): 0.3 * (1 + 0.1 * at) ** -0.75,
        RatePolicy(base_lr=0.3, lr_policy="poly", power=1.5, max_iter=59): 0.3 * (1 - at / 59) ** 1.5,
        RatePolicy(base_lr=0.3, lr_policy="sigmoid", gamma=-0.4, stepsize=30): 0.3 / (1 + np.exp(0.4 * (at - 30))),
        multistep((3, 10, 40)): 0.1 * 0.5 ** ((at >= 3).astype(int) + (at >= 10) + (at >= 40)),
    }
    for policy, expected in known.items():
        np.testing.assert_allclose(rates(policy), expected, rtol=1e-12, err_msg=policy.lr_policy)


def test_a_repeated_step_value_counts_one_iteration_later():
    assert [rate / 0.1 for rate in rates(multistep((2, 4, 4, 4)), 8)] == [
        1,
        1,
        0.5,
        0.5,
        0.25,
        0.125,
        0.0625,
        0.0625,
    ]


@given(step_values, st.integers(0, 50))
def test_multistep_goes_on_from_its_step_as_if_never_stopped(values: tuple[int, ...], stop: int):
    policy = multistep(values)
    schedule = RateSchedule(policy)
    first = [schedule.advance(iteration) for iteration in range(stop)]
    resumed = RateSchedule(policy, schedule.current_step)
    rest = [resumed.advance(iteration) for iteration in range(stop, 60)]
    assert first + rest == rates(policy)


@given(step_values)
def test_the_settled_step_is_that_of_an_unbroken_run(values: tuple[int, ...]):
    policy, current = multistep(values), 0
    for iteration in range(60):
        before, current = current, policy_step(policy, iteration, current)
        assert 0 <= current - before <= 1
        assert settled_step(policy, iteration) == current


@given(st.integers(1, 20), st.integers(0, 100))
def test_the_settled_step_of_policy_step(stepsize: int, iteration: int):
    policy = RatePolicy(base_lr=1, lr_policy="step", gamma=0.5, stepsize=stepsize)
    assert settled_step(policy, iteration) == iteration // stepsize


@given(step_values, st.integers(0, 50), st.integers(0, 8))
def test_the_settled_step_goes_on_from_a_snapshot_of_another_policy(values: tuple[int, ...], begun: int, step: int):
    policy, current = multistep(values), step
    for iteration in range(begun, 60):
        current = policy_step(policy, iteration, current)
        assert settled_step(policy, iteration, since=(begun, step)) == current
    assert settled_step(RatePolicy(base_lr=1), 60, since=(begun, step)) == step


@given(step_values, st.integers(0, 60))
def test_peeking_changes_nothing(values: tuple[int, ...], at: int):
    schedule = RateSchedule(multistep(values))
    for iteration in range(at):
        schedule.advance(iteration)
    step = schedule.current_step
    seen = [schedule.peek(at), schedule.peek(at)]
    assert schedule.current_step == step
    assert [schedule.advance(at)] * 2 == seen


@given(st.floats(0, 10), st.floats(-5, 5), st.integers(-100, 100), st.integers(0, 10**6))
def test_sigmoid_stays_between_nothing_and_the_base_rate(base: float, gamma: float, stepsize: int, at: int):
    policy = RatePolicy(base_lr=base, lr_policy="sigmoid", gamma=gamma, stepsize=stepsize)
    assert 0 <= policy_rate(policy, at, 0) <= base


@given(st.floats(1e-6, 10), st.floats(0, 1), st.floats(0, 4))
def test_falling_policies_never_rise(base: float, gamma: float, power: float):
    for policy in (
        RatePolicy(base_lr=base, lr_policy="step", gamma=gamma, stepsize=3),
        RatePolicy(base_lr=base, lr_policy="exp", gamma=gamma),
        RatePolicy(base_lr=base, lr_policy="inv", gamma=gamma, power=power),
        RatePolicy(base_lr=base, lr_policy="poly", power=power, max_iter=60),
        RatePolicy(base_lr=base, lr_policy="multistep", gamma=gamma, stepvalue=(5, 20)),
    ):
        found = rates(policy, 61)
        assert found == sorted(found, reverse=True)


def test_poly_ends_at_nothing_and_has_no_rate_past_its_end():
    policy = RatePolicy(base_lr=0.1, lr_policy="poly", power=1, max_iter=10)
    assert policy_rate(policy, 10, 0) == 0
    with pytest.raises(ConfigError, match=r"poly gives the rate -0\.01 at iteration 11; .*max_iter"):
        policy_rate(policy, 11, 0)


def test_a_rate_that_grows_out_of_bounds_is_an_error():
    policy = RatePolicy(base_lr=0.1, lr_policy="exp", gamma=10)
    assert math.isfinite(policy_rate(policy, 100, 0))
    with pytest.raises(ConfigError, match="exp gives the rate inf at iteration 1000"):
        policy_rate(policy, 1000, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lr_policy": "Multistep"},
            r"lr_policy is 'Multistep', did you mean 'multistep'\?; it must be one of fixed",
        ),
        ({"lr_policy": "cosine"}, "lr_policy is 'cosine'.*fixed, step, exp, inv, multistep, poly, sigmoid"),
        ({"lr_policy": "step", "gamma": 0.1}, "stepsize is missing; lr_policy step needs it"),
        ({"lr_policy": "step", "stepsize": 5}, "gamma is missing; lr_policy step needs it"),
        ({"lr_policy": "exp"}, "gamma is missing"),
        ({"lr_policy": "inv", "gamma": 0.1}, "power is missing"),
        ({"lr_policy": "multistep", "gamma": 0.1}, "stepvalue is missing"),
        ({"lr_policy": "poly", "power": 1}, "max_iter is missing"),
        ({"lr_policy": "poly", "max_iter": 5}, "power is missing"),
        ({"lr_policy": "poly", "power": 1, "max_iter": 0}, "max_iter is 0; .*at least 1"),
        ({"lr_policy": "sigmoid", "gamma": 0.1}, "stepsize is missing"),
        ({"lr_policy": "step", "gamma": -0.1, "stepsize": 2}, "gamma is -0.1; it must be at least 0"),
        ({"lr_policy": "step", "gamma": 0.1, "stepsize": 0}, "stepsize is 0; it must be at least 1"),
        ({"base_lr": -1.0}, "base_lr is -1.0; it must be at least 0"),
        ({"base_lr": math.nan}, "base_lr is nan; it must be a finite number"),
        ({"base_lr": math.inf}, "base_lr is inf"),
    ],
)
def test_what_a_policy_refuses(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        RatePolicy(**{"base_lr": 0.1, **settings})
