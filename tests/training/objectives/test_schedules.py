"""The rate as a function of the iteration: its formulas, and what holds whatever its constants."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparknet.config import Solver
from sparknet.training.objectives.schedules import learning_rate

FALLING = ("cosine", "poly", "linear")


@st.composite
def solvers(draw: st.DrawFn) -> Solver:
    """Any schedule that does not rise after its warm-up."""
    policy = draw(st.sampled_from(("fixed", "step", "multistep", *FALLING)))
    steps = sorted(draw(st.sets(st.integers(1, 200), min_size=1, max_size=4))) if policy == "multistep" else ()
    return Solver(
        learning_rate=draw(st.floats(1e-6, 10)),
        policy=policy,
        gamma=draw(st.floats(0.01, 1)),
        step_size=draw(st.integers(1, 50)) if policy == "step" else None,
        steps=tuple(steps),
        power=draw(st.floats(0.1, 4)),
        warmup_steps=draw(st.integers(0, 60)),
    )


@given(solvers(), st.floats(0, 400), st.integers(1, 300))
def test_a_rate_is_never_negative_nor_above_the_base(solver: Solver, iteration: float, total: int):
    assert 0 <= learning_rate(solver, iteration, total) <= solver.learning_rate


@given(solvers(), st.floats(0, 400), st.floats(0, 400), st.integers(1, 300))
def test_after_the_warm_up_a_rate_never_rises(solver: Solver, one: float, other: float, total: int):
    early, late = (solver.warmup_steps + at for at in sorted((one, other)))
    assert learning_rate(solver, late, total) <= learning_rate(solver, early, total) * (1 + 1e-12)


@given(solvers(), st.integers(1, 300))
def test_a_warm_up_begins_above_nothing_and_ends_without_a_jump(solver: Solver, total: int):
    warmup = solver.warmup_steps
    assert learning_rate(solver, 0, total) > 0 or (warmup == 0 and total == 0)
    if warmup and solver.policy not in ("step", "multistep"):
        # Its last step has the whole rate already, and what comes then begins from it.
        ends = [learning_rate(solver, warmup - 1 + share, total) for share in (0, 0.5, 1)]
        assert ends == pytest.approx([solver.learning_rate] * 3)


@given(st.sampled_from(FALLING), st.floats(0, 99), st.integers(0, 40))
def test_rates_that_fall_to_nothing_do_so_steadily(policy, iteration: float, warmup: int):
    solver = Solver(learning_rate=1.0, policy=policy, warmup_steps=warmup)
    # The steepest place of half a cosine over n iterations is pi / 2n; of a warm-up of w it is 1 / w.
    steepest = max(math.pi / 2 / (100 - warmup), 1 / max(1, warmup))
    change = learning_rate(solver, iteration + 0.01, 100) - learning_rate(solver, iteration, 100)
    assert abs(change) <= 0.01 * steepest + 1e-12
    assert learning_rate(solver, 100, 100) == pytest.approx(0, abs=1e-12)
    assert learning_rate(solver, 117, 100) == pytest.approx(0, abs=1e-12), "past the end"


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"policy": "fixed"}, {0: 0.4, 7.5: 0.4, 40: 0.4}),
        ({"policy": "step", "gamma": 0.5, "step_size": 8}, {0: 0.4, 7.9: 0.4, 8: 0.2, 15.99: 0.2, 16: 0.1}),
        ({"policy": "multistep", "gamma": 0.5, "steps": (3, 4)}, {2.9: 0.4, 3: 0.2, 4: 0.1, 39: 0.1}),
        ({"policy": "cosine"}, {0: 0.4, 10: 0.2 * (1 + math.sqrt(0.5)), 20: 0.2, 40: 0.0}),
        ({"policy": "poly", "power": 2.0}, {0: 0.4, 10: 0.225, 20: 0.1, 40: 0.0}),
        ({"policy": "linear"}, {0: 0.4, 10: 0.3, 20: 0.2, 40: 0.0}),
        ({"policy": "linear", "warmup_steps": 8}, {0: 0.05, 3: 0.2, 7: 0.4, 8: 0.4, 24: 0.2, 40: 0.0}),
        # A step that comes while the rate still rises counts then too: it would come as a jump afterwards.
        ({"policy": "step", "gamma": 0.5, "step_size": 4, "warmup_steps": 8}, {3: 0.2, 4: 0.125, 7: 0.2, 8: 0.1}),
    ],
)
def test_rates_by_hand(settings, rates):
    solver = Solver(learning_rate=0.4, **settings)
    for iteration, rate in rates.items():
        assert learning_rate(solver, iteration, 40) == pytest.approx(rate, abs=1e-12), iteration


def test_a_warm_up_longer_than_the_run_only_rises():
    solver = Solver(learning_rate=1.0, policy="cosine", warmup_steps=10)
    assert [learning_rate(solver, iteration, 4) for iteration in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
