"""Which column becomes which argument of a module, and which of its outputs is meant."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from named_rows import classes, number, rows_of
from sparknet.errors import NetError
from sparknet.training.objectives.net_call import NetCall, output_of

A, B = torch.full((2, 3), 1.0), torch.full((2, 3), 20.0)
Y = torch.tensor([0, 1])
BATCH = {"a": A, "b": B, "y": Y}
DIFFERENCE = B - A


class Named(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return b - a


class Optional(nn.Module):
    def forward(self, mask: Tensor | None = None, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        assert mask is None
        return b - a


class FirstOnly(nn.Module):
    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        assert b is None
        return a


class Other(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return second - first


class HalfNamed(nn.Module):
    def forward(self, b: Tensor, other: Tensor) -> Tensor:
        return other - b


class AnyName(nn.Module):
    def forward(self, **columns: Tensor) -> Tensor:
        return columns["b"] - columns["a"]


class SomeNames(nn.Module):
    def forward(self, b: Tensor, **others: Tensor) -> Tensor:
        return b - others["a"]


class Wrapper(nn.Module):
    def forward(self, *inputs: Tensor, **options: Tensor) -> Tensor:
        assert not options
        return inputs[1] - inputs[0]


class ByKeywordOnly(nn.Module):
    def forward(self, *, b: Tensor, a: Tensor) -> Tensor:
        return b - a


@pytest.mark.parametrize("net", [Named, Optional, AnyName, SomeNames, ByKeywordOnly])
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_names_of_parameters_decide_where_all_fit(net, order):
    call = NetCall(net(), rows_of([number(name, 3) for name in order], [classes("y", 2)]), name="net")
    assert torch.equal(call(BATCH), DIFFERENCE)


@pytest.mark.parametrize("net", [Other, HalfNamed, Wrapper])
def test_else_it_is_the_order(net):
    for order, sign in (("ab", 1), ("ba", -1)):
        call = NetCall(net(), rows_of([number(name, 3) for name in order], [classes("y", 2)]), name="net")
        assert torch.equal(call(BATCH), sign * DIFFERENCE)


def test_a_single_input_goes_in_whatever_it_is_called():
    call = NetCall(nn.Flatten(), rows_of([number("a", 3)], [classes("y", 2)]), name="net")
    assert torch.equal(call(BATCH), A)
    # By its place, also where another parameter has its name.
    call = NetCall(FirstOnly(), rows_of([number("b", 3)], [classes("y", 2)]), name="net")
    assert torch.equal(call(BATCH), B)


class WantsX(nn.Module):
    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("net", "inputs", "message"),
    [
        (nn.Linear(3, 1), "ab", r"data\.inputs are a, b and forward takes \(input.*too many positional"),
        (Named(), "a", r"data\.inputs are a and forward takes \(a.*, b.*missing a required argument: 'b'"),
        (WantsX(), "ab", r"data\.inputs are a, b and forward takes \(x.*too many positional"),
    ],
)
def test_inputs_that_do_not_fit_name_both_lists(net, inputs, message):
    with pytest.raises(NetError, match=message):
        NetCall(net, rows_of([number(name, 3) for name in inputs], [classes("y", 2)]), name="net")


class OwnLoss(nn.Module):
    """As Hugging Face's: it is given labels, or not."""

    def forward(self, a: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": a} if labels is None else {"loss": labels.float().mean(), "logits": a}


class NeedsTarget(nn.Module):
    def forward(self, a: Tensor, y: Tensor) -> Tensor:
        return a.mean() + y.sum()


class Autoencoder(nn.Module):
    def forward(self, a: Tensor) -> dict[str, Tensor]:
        return {"loss": a.mean()}


def test_a_net_with_a_loss_of_its_own_is_given_targets():
    call = NetCall(OwnLoss(), rows_of([number("a", 3)], [classes("y", 2)]), name="net", with_targets=True)
    assert set(call(BATCH)) == {"loss", "logits"}
    assert set(call(BATCH, targets=False)) == {"logits"}
    call = NetCall(NeedsTarget(), rows_of([number("a", 3)], [classes("y", 2)]), name="net", with_targets=True)
    assert call(BATCH) == 2
    with pytest.raises(NetError, match=r"missing a required argument: 'y'.*give those a default"):
        call(BATCH, targets=False)


def test_a_target_that_is_the_input_is_not_given_twice():
    rows = rows_of([number("a", 3)], [number("a", 3)])
    call = NetCall(Autoencoder(), rows, name="net", with_targets=True)
    assert call(BATCH)["loss"] == 1


def test_a_net_that_takes_no_targets_has_no_loss_of_its_own():
    with pytest.raises(NetError, match=r"'net' and forward has none of the parameters y or labels.*another loss"):
        NetCall(nn.Linear(3, 2), rows_of([number("a", 3)], [classes("y", 2)]), name="net", with_targets=True)


Heads = namedtuple("Heads", "digit ink")


@dataclass(slots=True)
class Slots:
    digit: Tensor
    ink: Tensor


@pytest.mark.parametrize(
    "outputs",
    [
        {"digit": A, "ink": B},
        {"loss": Y, "digit": A, "ink": B},
        Heads(A, B),
        Slots(A, B),
        SimpleNamespace(note="x", digit=A, ink=B),
    ],
)
def test_outputs_are_known_by_name(outputs):
    assert output_of(outputs, "ink", net="net") is B
    assert output_of(outputs, "", net="net") is A
    with pytest.raises(NetError, match=r"net returned .*digit, ink.*there is no output 'inc'"):
        output_of(outputs, "inc", net="net")


def test_outputs_are_known_by_number():
    assert output_of((A, B), "1", net="net") is B
    assert output_of([A, (B, B)], "", net="net") is A
    assert output_of(Heads(A, B), "1", net="net") is B
    assert output_of(A, "0", net="net") is A


def test_logits_come_first():
    assert output_of({"loss": Y, "hidden": A, "logits": B}, "", net="net") is B


@pytest.mark.parametrize("outputs", ["text", None, {"loss": Y}, []])
def test_what_is_no_tensor_is_told(outputs):
    with pytest.raises(NetError, match=r"net it returned .*it must return a tensor"):
        output_of(outputs, "", net="it")
