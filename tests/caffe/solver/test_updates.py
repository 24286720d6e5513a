"""Caffe's updates against numpy and torch, and the optimiser's place among torch's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparknet.caffe.solver.updates import _PIECE, CaffeOptimizer, UpdateRule
from sparknet.errors import CheckpointError
from sparknet.training.run_files.state_bytes import dump_optimizer, load_optimizer

STEPS = 6
SHAPES = [(3, 4), (4,), (2, 3, 2, 2)]

RULES = [
    UpdateRule(type="SGD", momentum=0.9, weight_decay=0.05),
    UpdateRule(type="SGD", momentum=-0.3, weight_decay=0.05),
    UpdateRule(type="Nesterov", momentum=-0.3),
    UpdateRule(type="Adam", momentum=-0.3, delta=1e-4),
    UpdateRule(type="Nesterov", momentum=0.9, weight_decay=0.05),
    UpdateRule(type="AdaGrad", delta=1e-3, weight_decay=0.05),
    UpdateRule(type="RMSProp", rms_decay=0.9, delta=1e-3, weight_decay=0.05),
    UpdateRule(type="AdaDelta", momentum=0.95, delta=1e-4, weight_decay=0.05),
    UpdateRule(type="Adam", momentum=0.9, momentum2=0.99, delta=1e-4, weight_decay=0.05),
]
by_type = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.type)


class Numpy:
    """Caffe's formulas once more, array by array, as its sources write them down."""

    def __init__(self, rule: UpdateRule, weights: list[np.ndarray]) -> None:
        self.rule, self.t = rule, 0
        self.weights = [weight.copy() for weight in weights]
        self.first = [np.zeros_like(weight) for weight in weights]
        self.second = [np.zeros_like(weight) for weight in weights]

    def step(self, gradients: list[np.ndarray], rate: float, mults: list[tuple[float, float]]) -> None:
        rule, self.t = self.rule, self.t + 1
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        if 0 <= rule.clip_gradients < norm:
            gradients = [g * (rule.clip_gradients / norm) for g in gradients]
        for at, (lr_mult, decay_mult) in enumerate(mults):
            weight = self.weights[at]
            penalty = weight if rule.regularization_type == "L2" else np.sign(weight)
            g = gradients[at] / rule.iter_size + rule.weight_decay * decay_mult * penalty
            weight -= getattr(self, f"_{rule.type.lower()}")(at, g, rate * lr_mult)

    def _sgd(self, at: int, g: np.ndarray, a: float) -> np.ndarray:
        self.first[at] = self.rule.momentum * self.first[at] + a * g
        return self.first[at]

    def _nesterov(self, at: int, g: np.ndarray, a: float) -> np.ndarray:
        before, mu = self.first[at], self.rule.momentum
        self.first[at] = mu * before + a * g
        return (1 + mu) * self.first[at] - mu * before

    def _adagrad(self, at: int, g: np.ndarray, a: float) -> np.ndarray:
        self.first[at] = self.first[at] + g**2
        return a * g / (np.sqrt(self.first[at]) + self.rule.delta)

    def _rmsprop(self, at: int, g: np.ndarray, a: float) -> np.ndarray:
        self.first[at] = self.rule.rms_decay * self.first[at] + (1 - self.rule.rms_decay) * g**2
        return a * g / (np.sqrt(self.first[at]) + self.rule.delta)

    def _adadelta(self, at: int, g: np.ndarray, a: float) -> np.ndarray:
        mu, delta = self.rule.momentum, self.rule.delta
        self.first[at] = mu * self.first[at] + (1 - mu) * g**2
        step = g * np.sqrt((self.second[at] + delta) / (self.first[at] + delta))
        self.second[at] = mu * self.second[at] + (1 - mu) * step**2
        return a * step

    def _adam(self, at: int, g: np.ndarray, a: float) -> np.ndarray:
        b1, b2 = self.rule.momentum, self.rule.momentum2
        self.first[at] = b1 * self.first[at] + (1 - b1) * g
        self.second[at] = b2 * self.second[at] + (1 - b2) * g**2
        correction = np.sqrt(1 - b2**self.t) / (1 - b1**self.t)
        return a * correction * self.first[at] / (np.sqrt(self.second[at]) + self.rule.delta)


def drawn(shapes: list[tuple[int, ...]], seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape) for shape in shapes]


def parameters(values: list[np.ndarray], dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(value, dtype=dtype)) for value in values]


def give(tensors: list[Any], gradients: list[np.ndarray]) -> None:
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = torch.tensor(gradient, dtype=tensor.dtype)


def run(optimizer: torch.optim.Optimizer, tensors: list[Any], steps: range = range(STEPS)) -> None:
    for at in steps:
        give(tensors, drawn([tuple(tensor.shape) for tensor in tensors], at))
        optimizer.step()


def equal(mine: list[Any], theirs: list[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def check(rule: UpdateRule, mults: list[tuple[float, float]], dtype: torch.dtype, rtol: float) -> None:
    """Run both implementations side by side, the rate changing on the way."""
    values = drawn(SHAPES, 99)
    tensors, reference = parameters(values, dtype), Numpy(rule, values)
    groups = [
        {"params": [tensor], "lr_mult": lr_mult, "decay_mult": decay_mult}
        for tensor, (lr_mult, decay_mult) in zip(tensors, mults, strict=True)
    ]
    optimizer = CaffeOptimizer(groups, lr=0.1, rule=rule)
    for at in range(STEPS):
        rate, gradients = 0.1 / (1 + at), drawn(SHAPES, at)
        for group in optimizer.param_groups:
            group["lr"] = rate
        give(tensors, gradients)
        optimizer.step()
        reference.step(gradients, rate, mults)
    histories = reference.first + (reference.second if len(rule.histories) == 2 else [])
    for mine, expected in zip(
        [*tensors, *optimizer.histories(tensors)], reference.weights + histories, strict=True
    ):
        np.testing.assert_allclose(mine.detach().numpy(), expected, rtol=rtol, atol=rtol)


def changed(rule: UpdateRule, **values: Any) -> UpdateRule:
    return UpdateRule(**{key: getattr(rule, key) for key in UpdateRule.__dataclass_fields__} | values)


PLAIN = [(1.0, 1.0)] * 3
MIXED = [(2.0, 0.0), (0.0, 1.0), (0.5, 3.0)]


@by_type
@pytest.mark.parametrize("mults", [PLAIN, MIXED], ids=["plain", "mixed"])
def test_as_numpy_in_float64(rule: UpdateRule, mults: list[tuple[float, float]]):
    check(rule, mults, torch.float64, 1e-12)


@by_type
def test_as_numpy_in_float32(rule: UpdateRule):
    check(rule, MIXED, torch.float32, 1e-5)


@by_type
@pytest.mark.parametrize(
    "values",
    [
        {"regularization_type": "L1"},
        {"iter_size": 3},
        {"clip_gradients": 2.0},
        {"clip_gradients": 1e6},
        {"clip_gradients": 2.0, "iter_size": 3, "regularization_type": "L1"},
    ],
    ids=str,
)
def test_clipping_accumulation_and_l1_as_numpy(rule: UpdateRule, values: dict[str, Any]):
    check(changed(rule, **values), MIXED, torch.float64, 1e-12)


def test_sgd_is_torchs_while_the_rate_stays():
    mine, theirs = parameters(drawn(SHAPES, 1)), parameters(drawn(SHAPES, 1))
    run(CaffeOptimizer(mine, lr=0.1, rule=RULES[0]), mine)
    run(torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.05), theirs)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_adam_is_torchs_where_delta_does_not_count():
    mine, theirs = parameters(drawn(SHAPES, 1)), parameters(drawn(SHAPES, 1))
    run(CaffeOptimizer(mine, lr=0.1, rule=UpdateRule(type="Adam", momentum=0.9, delta=1e-30)), mine)
    run(torch.optim.Adam(theirs, lr=0.1, eps=1e-30), theirs)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@by_type
def test_a_large_tensor_moves_as_its_parts_would(rule: UpdateRule):
    """Large tensors are worked on in pieces; the numbers are the same bits."""
    (value,) = drawn([(2 * _PIECE + 5,)], 1)
    (whole,) = parameters([value], torch.float32)
    parts = parameters(np.array_split(value, 7), torch.float32)
    one, many = CaffeOptimizer([whole], lr=0.1, rule=rule), CaffeOptimizer(parts, lr=0.1, rule=rule)
    for at in range(3):
        (gradient,) = drawn([value.shape], at)
        give([whole], [gradient])
        give(parts, np.array_split(gradient, 7))
        one.step()
        many.step()
    assert torch.equal(whole, torch.cat(parts))


@by_type
def test_memory_order_does_not_matter(rule: UpdateRule):
    plain, turned = (parameters(drawn([(4, 3, 5, 5)], 1), torch.float32) for _ in range(2))
    turned[0].data = turned[0].data.contiguous(memory_format=torch.channels_last)
    run(CaffeOptimizer(plain, lr=0.1, rule=rule), plain)
    run(CaffeOptimizer(turned, lr=0.1, rule=rule), turned)
    torch.testing.assert_close(turned[0], plain[0])
    assert turned[0].is_contiguous(memory_format=torch.channels_last)


@by_type
def test_a_tensor_without_gradient_is_one_with_gradient_nothing(rule: UpdateRule):
    """Caffe has a gradient for every blob: histories decay, and weight decay works on."""
    absent, zero = parameters(drawn(SHAPES, 1)), parameters(drawn(SHAPES, 1))
    first, second = CaffeOptimizer(absent, lr=0.1, rule=rule), CaffeOptimizer(zero, lr=0.1, rule=rule)
    run(first, absent)
    run(second, zero)
    first.zero_grad()
    give(zero, [np.zeros(shape) for shape in SHAPES])
    for _ in range(3):
        first.step()
        for tensor in zero:
            tensor.grad.zero_()
        second.step()
    assert equal(absent, zero)


@by_type
@pytest.mark.parametrize("has_gradient", [False, True])
def test_what_is_frozen_stays_and_a_gradient_that_it_has_counts_in_the_norm(rule: UpdateRule, has_gradient: bool):
    rule = changed(rule, clip_gradients=0.5)
    frozen, free = parameters(drawn([(3,), (3,)], 1))
    alone = nn.Parameter(free.detach().clone())
    groups = [{"params": [frozen], "lr_mult": 0.0, "decay_mult": 0.0}, {"params": [free]}]
    before = frozen.detach().clone()
    both, one = CaffeOptimizer(groups, lr=0.1, rule=rule), CaffeOptimizer([alone], lr=0.1, rule=rule)
    for at in range(STEPS):
        huge, gradient = drawn([(3,), (3,)], at)
        give([free, alone], [gradient, gradient])
        frozen.grad = torch.tensor(1e9 * huge) if has_gradient else None
        both.step()
        one.step()
    assert torch.equal(frozen, before)
    assert torch.equal(free, alone) != has_gradient


def test_buffers_take_part():
    statistics = torch.ones(3)
    groups = [{"params": [statistics], "lr_mult": 0.0, "decay_mult": 0.0}]
    optimizer = CaffeOptimizer(groups, lr=0.1, rule=RULES[0])
    optimizer.step()
    assert torch.equal(statistics, torch.ones(3))
    assert torch.equal(optimizer.histories([statistics])[0], torch.zeros(3))


Carry = Callable[[torch.optim.Optimizer, torch.optim.Optimizer], None]


def by_state_dict(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> None:
    new.load_state_dict(old.state_dict())


def by_dump(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> None:
    load_optimizer(new, dump_optimizer(old))


@by_type
@pytest.mark.parametrize("carry", [by_state_dict, by_dump], ids=lambda carry: carry.__name__)
def test_a_run_goes_on_from_its_state_to_the_same_bits(rule: UpdateRule, carry: Carry):
    unbroken = parameters(drawn(SHAPES, 1), torch.float32)
    run(CaffeOptimizer(unbroken, lr=0.1, rule=rule), unbroken)
    first = parameters(drawn(SHAPES, 1), torch.float32)
    old = CaffeOptimizer(first, lr=0.1, rule=rule)
    run(old, first, range(3))
    second = [nn.Parameter(tensor.detach().clone()) for tensor in first]
    new = CaffeOptimizer(second, lr=0.1, rule=rule)
    carry(old, new)
    run(new, second, range(3, STEPS))
    assert equal(second, unbroken)


@by_type
def test_histories_go_over_in_caffes_order(rule: UpdateRule):
    tensors = parameters(drawn(SHAPES, 1))
    old = CaffeOptimizer(tensors, lr=0.1, rule=rule)
    run(old, tensors, range(3))
    histories: list[Tensor] = old.histories(tensors)
    assert [tuple(blob.shape) for blob in histories] == SHAPES * len(rule.histories)
    copies = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
    new = CaffeOptimizer(copies, lr=0.1, rule=rule)
    new.load_histories(copies, [blob.clone() for blob in histories], 3)
    run(old, tensors, range(3, STEPS))
    run(new, copies, range(3, STEPS))
    assert equal(tensors, copies)


def test_a_cleared_state_starts_afresh():
    """How a synchronisation that resets the inner optimiser does it."""
    rule = RULES[-1]
    tensors = parameters(drawn(SHAPES, 1))
    optimizer = CaffeOptimizer(tensors, lr=0.1, rule=rule)
    run(optimizer, tensors, range(3))
    fresh = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
    optimizer.state.clear()
    run(optimizer, tensors, range(3, STEPS))
    run(CaffeOptimizer(fresh, lr=0.1, rule=rule), fresh, range(3, STEPS))
    assert equal(tensors, fresh)


def test_histories_of_another_net_or_type_are_refused():
    tensors = parameters(drawn(SHAPES, 1))
    sgd = CaffeOptimizer(tensors, lr=0.1, rule=RULES[0])
    with pytest.raises(CheckpointError, match="the history has 2 blobs; type SGD over 3 parameters has 3"):
        sgd.load_histories(tensors, [torch.zeros(3, 4), torch.zeros(4)], 1)
    given = [torch.zeros(3, 4), torch.zeros(5), torch.zeros(2, 3, 2, 2)]
    with pytest.raises(CheckpointError, match=r"history blob 1 has shape \(5,\); the net's parameter has \(4,\)"):
        sgd.load_histories(tensors, given, 1)


def test_legacy_shapes_of_four_numbers_fit():
    tensors = parameters(drawn([(3, 4), (4,)], 1))
    sgd = CaffeOptimizer(tensors, lr=0.1, rule=RULES[0])
    sgd.load_histories(tensors, [torch.ones(1, 1, 3, 4), torch.ones(1, 1, 1, 4)], 1)
    assert [tuple(blob.shape) for blob in sgd.histories(tensors)] == [(3, 4), (4,)]
    assert all(bool((blob == 1).all()) for blob in sgd.histories(tensors))


def test_a_closure_is_asked_for_loss_and_gradient():
    (weight,) = parameters([np.array([2.0])])
    optimizer = CaffeOptimizer([weight], lr=0.25)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert weight.item() == 1.0
