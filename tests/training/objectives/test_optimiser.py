"""The inner optimiser follows its configuration; the rates by policy stand in tests/numerics."""

import pytest

from sparknet.config import Solver
from sparknet.training.objectives.schedules import learning_rate


@pytest.mark.parametrize("iteration", [0, 0.3, 7.9, 15.99])
def test_step_holds_its_rate_between_the_steps(iteration):
    solver = Solver(learning_rate=0.4, policy="step", gamma=0.5, step_size=8)
    assert learning_rate(solver, iteration, 100) == (0.4 if iteration < 8 else 0.2)


def test_cosine_falls_from_the_base_rate_to_nothing():
    solver = Solver(learning_rate=0.4, policy="cosine")
    rates = [learning_rate(solver, iteration, 40) for iteration in range(41)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 0.4
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
