"""Layers that map each value on its own, against their formulas; gradients at the kinks too."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from one_layer import layer_of_type

F64 = torch.float64
VALUES = [-60.0, -3.0, -0.5, 0.0, 0.25, 1.0, 2.0, 60.0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


Formula = Callable[[float], float]
CASES: list[tuple[str, str, Formula, Formula]] = [
    ("ReLU", "", lambda x: max(x, 0), lambda x: x > 0),
    ("ReLU", "relu_param { negative_slope: 0.5 }", lambda x: x if x > 0 else x / 2, lambda x: 1 if x > 0 else 0.5),
    ("ReLU", "relu_param { negative_slope: -2 }", lambda x: x if x > 0 else -2 * x, lambda x: 1 if x > 0 else -2),
    ("PReLU", "", lambda x: x if x > 0 else x / 4, lambda x: 1 if x > 0 else 0.25),
    (
        "ELU",
        "elu_param { alpha: 2 }",
        lambda x: x if x > 0 else 2 * math.expm1(x),
        lambda x: 1 if x > 0 else 2 * math.exp(x),
    ),
    (
        "ELU",
        "elu_param { alpha: -0.5 }",
        lambda x: x if x > 0 else -0.5 * math.expm1(x),
        lambda x: 1 if x > 0 else -0.5 * math.exp(x),
    ),
    ("Sigmoid", "", sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    ("TanH", "", math.tanh, lambda x: 1 - math.tanh(x) ** 2),
    ("AbsVal", "", abs, np.sign),
    ("BNLL", "", lambda x: max(x, 0) + math.log1p(math.exp(-abs(x))), sigmoid),
    ("Power", "", lambda x: x, lambda x: 1),
    (
        "Power",
        "power_param { power: 3 scale: -2 shift: 0.5 }",
        lambda x: (0.5 - 2 * x) ** 3,
        lambda x: -6 * (0.5 - 2 * x) ** 2,
    ),
    ("Power", "power_param { power: 0 shift: 7 }", lambda x: 1, lambda x: 0),
    ("Power", "power_param { power: 2 scale: 0 shift: 3 }", lambda x: 9, lambda x: 0),
    ("Power", "power_param { power: -2 scale: 0 shift: 0 }", lambda x: math.inf, lambda x: 0),
    ("Power", "power_param { power: 2 }", lambda x: x * x, lambda x: 2 * x),
    ("Exp", "exp_param { scale: 0.5 }", lambda x: math.exp(x / 2), lambda x: math.exp(x / 2) / 2),
    (
        "Exp",
        "exp_param { base: 2 scale: 0.5 shift: 1 }",
        lambda x: 2 ** (x / 2 + 1),
        lambda x: 2 ** (x / 2 + 1) * math.log(2) / 2,
    ),
    ("Exp", "exp_param { base: 1 }", lambda x: 1, lambda x: 0),
    (
        "Log",
        "log_param { base: 2 scale: 0.5 shift: 64 }",
        lambda x: math.log2(x / 2 + 64),
        lambda x: 0.5 / (x / 2 + 64) / math.log(2),
    ),
    ("Log", "log_param { shift: 61 }", lambda x: math.log(x + 61), lambda x: 1 / (x + 61)),
    ("Clip", "clip_param { min: -0.5 max: 1 }", lambda x: min(max(x, -0.5), 1), lambda x: -0.5 <= x <= 1),
    ("Swish", "", lambda x: x * sigmoid(x), lambda x: sigmoid(x) + x * sigmoid(x) * sigmoid(-x)),
    (
        "Swish",
        "swish_param { beta: 0.5 }",
        lambda x: x * sigmoid(x / 2),
        lambda x: sigmoid(x / 2) + x / 2 * sigmoid(x / 2) * sigmoid(-x / 2),
    ),
]


@pytest.mark.parametrize(("kind", "text", "formula", "slope"), CASES)
def test_values_and_slopes(kind: str, text: str, formula: Formula, slope: Formula):
    x = torch.tensor([VALUES], dtype=F64, requires_grad=True)
    top = layer_of_type(kind, text, (1, len(VALUES))).double()(x)
    np.testing.assert_allclose(top.detach()[0], [float(formula(v)) for v in VALUES], rtol=1e-12, atol=1e-12)
    if top.requires_grad:
        top.sum().backward()
        np.testing.assert_allclose(x.grad[0], [float(slope(v)) for v in VALUES], rtol=1e-12, atol=1e-12)
    else:
        assert not any(float(slope(v)) for v in VALUES)


def test_threshold_is_strict():
    x = torch.tensor([0.5, 0.4, 0.6], requires_grad=True)
    top = layer_of_type("Threshold", "threshold_param { threshold: 0.5 }", (3,))(x)
    assert top.tolist() == [0, 0, 1]
    assert top.dtype == x.dtype
    assert not top.requires_grad


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("shared", [True, False])
def test_prelu_slopes(shape: tuple[int, ...], shared: bool):
    text = f"""prelu_param {{ channel_shared: {str(shared).lower()} filler {{ type: "uniform" min: -1 }} }}"""
    prelu = layer_of_type("PReLU", text, shape).double()
    assert tuple(prelu.weight.shape) == (() if shared else (3,))
    x = torch.randn(shape, dtype=F64, requires_grad=True)
    prelu(x).sum().backward()
    below = x.detach().clamp(max=0)
    expected = below.sum() if shared else below.transpose(0, 1).flatten(1).sum(1)
    torch.testing.assert_close(prelu.weight.grad, expected)
    wide = prelu.weight.detach().view(() if shared else (3, *(1,) * (len(shape) - 2)))
    torch.testing.assert_close(x.grad, torch.where(x > 0, 1.0, wide))


@pytest.mark.parametrize(
    ("kind", "text"), [("ReLU", ""), ("ReLU", "relu_param { negative_slope: 0.1 }"), ("Dropout", "")]
)
def test_in_place_overwrites_the_bottom(kind: str, text: str):
    spared = layer_of_type(kind, text, (4, 5))
    spared.in_place = True
    x = torch.randn(4, 5)
    assert spared(x) is x


def test_negative_slope_below_zero_is_right_in_place_too():
    relu = layer_of_type("ReLU", "relu_param { negative_slope: -1 }", (2,))
    relu.in_place = True
    x = torch.tensor([-2.0, 2.0], requires_grad=True)
    relu(x * 1).sum().backward()
    assert x.grad.tolist() == [-1, 1]


def test_dropout():
    torch.manual_seed(3)
    x = torch.ones(40000, requires_grad=True)
    dropout = layer_of_type("Dropout", "dropout_param { dropout_ratio: 0.2 }", (40000,))
    top = dropout(x)
    assert abs((top == 0).double().mean().item() - 0.2) < 0.01
    assert set(top.unique().tolist()) == {0.0, 1.25}
    top.sum().backward()
    torch.testing.assert_close(x.grad, top.detach())
    torch.testing.assert_close(dropout.eval()(x), x, rtol=0, atol=0)
    assert (layer_of_type("Dropout", "dropout_param { dropout_ratio: 0 }", (4,))(torch.ones(4)) == 1).all()
