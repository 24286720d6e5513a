"""The inner optimiser follows its configuration; the rates by policy stand in tests/numerics."""

import pytest
import torch
from torch import nn

from sparknet.config import Solver
from sparknet.training.solver import build_optimizer, learning_rate, set_learning_rate


class TwoWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.frozen = nn.Parameter(torch.tensor([1.0]), requires_grad=False)


def test_momentum_and_weight_decay_by_hand():
    """Caffe's rule: v = μ v + (g + λ w), w -= rate v."""
    module = TwoWeights()
    optimiser = build_optimizer(Solver(learning_rate=0.1, momentum=0.5, weight_decay=0.2), module)
    trace = []
    for _ in range(3):
        module.weight.grad = torch.tensor([1.0])
        optimiser.step()
        trace.append(module.weight.item())
    # v: 1.2; 0.6 + 1 + 0.2 * 0.88 = 1.776; 0.888 + 1 + 0.2 * 0.7024 = 2.02848
    assert trace == pytest.approx([0.88, 0.7024, 0.499552], rel=1e-6)
    assert module.frozen.item() == 1.0


def test_the_rate_is_set_for_all_parameters():
    module = TwoWeights()
    optimiser = build_optimizer(Solver(learning_rate=0.1, momentum=0.0), module)
    optimiser.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    set_learning_rate(optimiser, 0.25)
    assert [group["lr"] for group in optimiser.param_groups] == [0.25, 0.25]
    module.weight.grad = torch.tensor([1.0])
    optimiser.step()
    assert module.weight.item() == 0.75


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
