"""The inner solver follows its configuration: rates for each group, batches for each step."""

import pytest

from small_modules import small_net, solver_of
from sparknet.config import ParameterGroup


def test_a_rate_is_each_groups_times_its_factor():
    solver = solver_of(small_net(), groups=(ParameterGroup(pattern="3.*", rate_factor=10.0),))
    solver.set_rate(0.02)
    assert sorted(group["lr"] for group in solver.optimizer.param_groups) == pytest.approx([0.02, 0.2])
    # Given anew, not multiplied again.
    solver.set_rate(0.02)
    assert sorted(group["lr"] for group in solver.optimizer.param_groups) == pytest.approx([0.02, 0.2])


def test_accumulated_batches_are_averaged():
    solver = solver_of(small_net(), accumulate=4, clip_norm=0.5)
    assert (solver.batches_per_step, solver.batch_share, solver.clip_norm) == (4, 0.25, 0.5)


def test_the_rate_goes_over_the_iterations_of_the_run():
    solver = solver_of(small_net(), policy="linear", learning_rate=1.0, warmup_steps=4)
    assert [solver.rate(at) for at in (0, 3, 4, 12, 20)] == pytest.approx([0.25, 1.0, 1.0, 0.5, 0.0])
