"""Steps in a precision: bf16 and fp16 on the CPU, the scale of fp16 as state, and what overflows."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from small_modules import assert_equal, small_net
from sparknet.training.worker.precision import Precision

CPU = torch.device("cpu")
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3, 0])


def one_step(module: nn.Module, precision: Precision, optimizer, *, factor: float = 1.0, clip_norm=None):
    """A step on the same rows; the outputs."""
    optimizer.zero_grad(set_to_none=True)
    with precision.forward():
        outputs = module(X)
        loss = functional.cross_entropy(outputs, Y) * factor
    precision.backward(loss)
    precision.step(optimizer, clip_norm=clip_norm)
    return outputs


def sgd(module: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9)


def moved(module: nn.Module) -> torch.Tensor:
    """How far all parameters have come from where they began, as one vector."""
    pairs = zip(module.parameters(), small_net().parameters(), strict=True)
    return torch.cat([(now - begun).detach().reshape(-1) for now, begun in pairs])


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_passes_are_in_the_precision_and_weights_in_float32(name, dtype):
    module = small_net()
    optimizer = sgd(module)
    outputs = one_step(module, Precision(name, CPU), optimizer)
    assert outputs.dtype == dtype
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in module.parameters()} == {torch.float32}
    reference = small_net()
    one_step(reference, Precision("fp32", CPU), sgd(reference))
    exact = name == "fp32"
    assert torch.equal(module[0].weight, reference[0].weight) == exact
    torch.testing.assert_close(module[0].weight, reference[0].weight, rtol=0, atol=2e-3)


def test_steps_of_fp16_whose_gradients_overflow_are_left_out_and_halve_the_scale():
    module = small_net()
    precision, optimizer = Precision("fp16", CPU), sgd(module)
    one_step(module, precision, optimizer)
    before = small_net()
    before.load_state_dict(module.state_dict())
    scale = precision.state()["scale"]
    one_step(module, precision, optimizer, factor=1e6)
    assert_equal(module, before)
    assert precision.state() == {"scale": scale / 2, "_growth_tracker": 0.0}
    one_step(module, precision, optimizer)
    assert not torch.equal(module[0].weight, before[0].weight)


def test_gradients_are_clipped_as_they_are_and_not_as_they_are_scaled():
    # Far above what these gradients come to: only scaled ones would be clipped.
    free, clipped, narrow = small_net(), small_net(), small_net()
    for module, norm in ((free, None), (clipped, 50.0), (narrow, 1e-3)):
        one_step(module, Precision("fp16", CPU), sgd(module, rate=1.0), clip_norm=norm)
    assert_equal(free, clipped)
    assert moved(narrow).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_clipping_is_by_the_norm_over_all_parameters():
    module = small_net()
    one_step(module, Precision("fp32", CPU), sgd(module, rate=1.0), clip_norm=0.01)
    assert moved(module).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_scale_of_fp16_goes_on_from_its_state():
    module = small_net()
    first, optimizer = Precision("fp16", CPU), sgd(module)
    one_step(module, first, optimizer, factor=1e6)
    for _ in range(3):
        one_step(module, first, optimizer)
    assert first.state()["_growth_tracker"] == 3
    second = Precision("fp16", CPU)
    second.load(first.state())
    assert second.state() == first.state()
    for precision in (first, second):
        one_step(module, precision, optimizer)
    assert second.state() == first.state()
    second.load({})
    assert second.state() == Precision("fp16", CPU).state()


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_other_precisions_have_no_state(name):
    precision = Precision(name, CPU)
    assert precision.state() == {}
    precision.load({"scale": 4.0, "_growth_tracker": 1.0})
    assert precision.state() == {}


def test_losses_that_overflow_count_in_all_but_fp16():
    losses = torch.tensor([1.0, float("inf"), float("nan"), 3.0])
    assert Precision("fp16", CPU).counted(losses).tolist() == [1.0, 3.0]
    for name in ("fp32", "bf16"):
        assert Precision(name, CPU).counted(losses).numel() == 4


def test_fp16_that_always_overflows_says_so():
    precision = Precision("fp16", CPU)
    assert precision.overflow == ""
    precision.load({"scale": 2.0**-25, "_growth_tracker": 0.0})
    assert "overflow in fp16 at a loss scale of 2.98023e-08" in precision.overflow
    assert "set solver.precision to 'bf16' or 'fp32'" in precision.overflow
    assert Precision("bf16", CPU).overflow == ""
