"""Each kind of loss: torch's, the user's, the net's own; weights of rows; what is refused before a batch."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from named_rows import classes, number, rows_of
from sparknet.config import Objective
from sparknet.errors import ConfigError, NetError
from sparknet.training.objectives.losses import build_loss

GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.randn(4, 3, generator=GENERATOR)
NUMBERS = torch.randn(4, generator=GENERATOR)
LABELS = torch.tensor([0, 2, 1, 2])
WEIGHTS = torch.tensor([1.0, 0.0, 3.0, 0.5])
X = number("x", 3)
CLASS = rows_of([X], [classes("y", 3)])
WEIGHTED = rows_of([X], [classes("y", 3)], weight="w")
REAL = rows_of([X], [number("y")])
TWO = rows_of([X], [classes("digit", 3), number("ink")])


def loss_of(rows, outputs, batch, loss="", **arguments):
    section = Objective(loss=loss, loss_arguments=arguments)
    return build_loss(section, rows, net="net")(outputs, batch)


def own(outputs, targets, *, factor=1.0):
    return factor * (outputs.sum() + targets.sum())


def heads(outputs, targets, *, share):
    digit = functional.cross_entropy(outputs["digit"], targets["digit"])
    return digit + share * functional.mse_loss(outputs["ink"], targets["ink"])


def pair(outputs, targets):
    return outputs[0].mean() + targets["ink"].mean()


def weighted(outputs, targets, weights):
    return (weights * outputs.mean(1)).sum() + targets.sum()


def by_word(outputs, targets, *, names, **options):
    assert names == ["a", "b"]
    assert options["other"] == 2
    return outputs.mean()


def by_row(outputs, targets):
    return outputs.mean(1)


def no_tensor(outputs, targets):
    return 1.5


def one_value(outputs):
    return outputs.mean()


def needs_alpha(outputs, targets, alpha):
    return outputs.mean()


def here(function) -> str:
    return f"{__name__}:{function.__name__}"


def test_classes_have_cross_entropy():
    expected = functional.cross_entropy(SCORES, LABELS)
    assert torch.equal(loss_of(CLASS, SCORES, {"y": LABELS}), expected)
    assert torch.equal(loss_of(CLASS, {"logits": SCORES}, {"y": LABELS}), expected)


def test_numbers_have_the_squared_error():
    assert torch.equal(loss_of(REAL, NUMBERS, {"y": LABELS.float()}), functional.mse_loss(NUMBERS, LABELS.float()))


def test_an_axis_of_one_makes_no_square_of_differences():
    expected = functional.mse_loss(NUMBERS, LABELS.float())
    assert torch.equal(loss_of(REAL, NUMBERS[:, None], {"y": LABELS.float()}), expected)
    narrow = rows_of([X], [number("y", 1)])
    assert torch.equal(loss_of(narrow, NUMBERS, {"y": LABELS.float()[:, None]}), expected)


@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 1), (2,)])
def test_numbers_of_another_shape_are_refused(shape):
    with pytest.raises(NetError, match=r"returned \(.*\) and the target is \(4,\); both must have one shape"):
        loss_of(REAL, torch.zeros(shape), {"y": NUMBERS})


def test_soft_labels_are_asked_for():
    soft = rows_of([X], [number("y", 3)])
    target = torch.softmax(SCORES.flip(0), 1)
    assert torch.equal(loss_of(soft, SCORES, {"y": target}), functional.mse_loss(SCORES, target))
    found = loss_of(soft, SCORES, {"y": target}, "cross_entropy")
    assert torch.equal(found, functional.cross_entropy(SCORES, target))
    with pytest.raises(NetError, match=r"returned \(4, 2\); probabilities of the classes are \(4, 3\)"):
        loss_of(soft, SCORES[:, :2], {"y": target}, "cross_entropy")


def test_a_label_for_each_pixel():
    rows = rows_of([X], [classes("y", 3, 2, 2)])
    scores, labels = torch.randn(4, 3, 2, 2, generator=GENERATOR), torch.zeros(4, 2, 2, dtype=torch.int64)
    assert torch.equal(loss_of(rows, scores, {"y": labels}), functional.cross_entropy(scores, labels))
    with pytest.raises(NetError, match=r"returned \(4, 3\); it must return \[4, classes, 2, 2\]"):
        loss_of(rows, SCORES, {"y": labels})


def test_whole_numbers_serve_a_loss_of_numbers():
    rows = rows_of([X], [classes("y", 2)])
    found = loss_of(rows, NUMBERS[:, None], {"y": LABELS % 2}, "binary_cross_entropy_with_logits", pos_weight=[2.0])
    expected = functional.binary_cross_entropy_with_logits(
        NUMBERS, (LABELS % 2).float(), pos_weight=torch.tensor([2.0])
    )
    assert torch.equal(found, expected)


def test_lists_of_classes():
    rows = rows_of([X], [classes("y", None, 3)])
    lists = torch.tensor([[0, -1, -1], [1, 2, -1], [2, -1, -1], [0, 1, 2]])
    found = loss_of(rows, SCORES, {"y": lists}, "multilabel_margin_loss")
    assert torch.equal(found, functional.multilabel_margin_loss(SCORES, lists))
    with pytest.raises(NetError, match=r"returned \(4, 2\) and the lists of classes are \(4, 3\).*with -1"):
        loss_of(rows, SCORES[:, :2], {"y": lists}, "multilabel_margin_loss")


def test_lists_of_numbers_become_tensors():
    found = loss_of(CLASS, SCORES, {"y": LABELS}, weight=[1, 1, 4], label_smoothing=0.1)
    expected = functional.cross_entropy(SCORES, LABELS, weight=torch.tensor([1.0, 1.0, 4.0]), label_smoothing=0.1)
    assert torch.equal(found, expected)


def test_tensors_of_arguments_move_with_the_net():
    meta = torch.device("meta")
    for section in (
        Objective(loss_arguments={"weight": [1.0, 1.0, 4.0]}),
        Objective(loss=here(own), loss_arguments={"factor": [2.0]}),
    ):
        loss = build_loss(section, CLASS, net="net").to(meta)
        found = loss(torch.zeros(4, 3, device=meta), {"y": torch.zeros(4, dtype=torch.int64, device=meta)})
        assert found.device == meta


def test_weights_of_rows():
    each = functional.cross_entropy(SCORES, LABELS, reduction="none")
    found = loss_of(WEIGHTED, SCORES, {"y": LABELS, "w": WEIGHTS})
    torch.testing.assert_close(found, (each * WEIGHTS).sum() / WEIGHTS.sum())
    rows = rows_of([X], [number("y", 3)], weight="w")
    target = SCORES.flip(0)
    found = loss_of(rows, SCORES, {"y": target, "w": WEIGHTS}, "l1_loss")
    torch.testing.assert_close(found, ((SCORES - target).abs().mean(1) * WEIGHTS).sum() / WEIGHTS.sum())


def test_rows_that_all_weigh_nothing_move_nothing():
    scores = SCORES.clone().requires_grad_()
    loss = loss_of(WEIGHTED, scores, {"y": LABELS, "w": torch.zeros(4)})
    loss.backward()
    assert loss == 0
    assert torch.equal(scores.grad, torch.zeros(4, 3))


def test_weights_of_rows_with_labels_that_do_not_count():
    rows = rows_of([X], [classes("y", None, 2)], weight="w")
    scores, labels = torch.randn(2, 3, 2, generator=GENERATOR), torch.tensor([[0, -100], [1, 2]])
    each = functional.cross_entropy(scores, labels, reduction="none")
    expected = (each[0, 0] * 1.0 + each[1].mean() * 3.0) / 4.0
    torch.testing.assert_close(loss_of(rows, scores, {"y": labels, "w": torch.tensor([1.0, 3.0])}), expected)


def test_only_means_of_rows_may_be_cut_anywhere():
    def cut(rows, **section):
        return build_loss(Objective(**section), rows, net="net").by_row

    assert cut(CLASS)
    assert cut(REAL)
    assert cut(CLASS, loss_arguments={"label_smoothing": 0.1})
    assert not cut(CLASS, loss_arguments={"weight": [1.0, 1.0, 4.0]})
    assert not cut(CLASS, loss_arguments={"ignore_index": 2})
    assert not cut(rows_of([X], [classes("y", None, 5)]))
    assert not cut(CLASS, loss=here(own))


def test_a_function_of_the_users():
    assert loss_of(CLASS, SCORES, {"y": LABELS}, here(own), factor=2.0) == 2 * (SCORES.sum() + LABELS.sum())
    assert loss_of(CLASS, SCORES, {"y": LABELS}, here(by_word), names=["a", "b"], other=2) == SCORES.mean()


def test_several_targets_come_by_name():
    batch = {"digit": LABELS, "ink": NUMBERS, "x": SCORES}
    outputs = {"digit": SCORES, "ink": NUMBERS.flip(0)}
    expected = functional.cross_entropy(SCORES, LABELS) + 0.5 * functional.mse_loss(NUMBERS.flip(0), NUMBERS)
    torch.testing.assert_close(loss_of(TWO, outputs, batch, here(heads), share=0.5), expected)
    assert loss_of(TWO, (SCORES, NUMBERS), batch, here(pair)) == SCORES.mean() + NUMBERS.mean()


def test_a_function_of_the_users_is_given_weights():
    found = loss_of(WEIGHTED, SCORES, {"y": LABELS, "w": WEIGHTS}, here(weighted))
    torch.testing.assert_close(found, (WEIGHTS * SCORES.mean(1)).sum() + LABELS.sum())


@pytest.mark.parametrize("outputs", [{"loss": NUMBERS.mean()}, nn.ParameterDict({"loss": NUMBERS[:1]})])
def test_the_nets_own_loss(outputs):
    assert loss_of(CLASS, outputs, {}, "net").shape == ()


class Output:
    loss = NUMBERS.mean()


def test_the_nets_own_loss_is_an_attribute():
    assert loss_of(CLASS, Output(), {}, "net") == NUMBERS.mean()


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"logits": SCORES}, r"returned dict without a loss.*\.loss or \['loss'\], or name a loss"),
        (SCORES, "returned Tensor without a loss"),
        ({"loss": NUMBERS}, r"the loss that net net returned is \(4,\); it must be a tensor of one number"),
    ],
)
def test_nets_without_a_loss_are_told(outputs, message):
    with pytest.raises(NetError, match=message):
        loss_of(CLASS, outputs, {}, "net")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (by_row, r"loss of net net is \(4,\); it must be a tensor of one number"),
        (no_tensor, "is float; it must be"),
    ],
)
def test_a_function_must_return_one_number(function, message):
    with pytest.raises(NetError, match=message):
        loss_of(CLASS, SCORES, {"y": LABELS}, here(function))


def test_a_label_that_the_net_has_no_score_for():
    with pytest.raises(
        NetError, match=r"returned \(4, 2\) and a label is 2; it must return a score for every class"
    ):
        loss_of(CLASS, SCORES[:, :2], {"y": LABELS})


@pytest.mark.parametrize(
    ("rows", "loss", "arguments", "message"),
    [
        (TWO, "", {}, "the targets are digit, ink and objective.loss is not given.*set objective.loss="),
        (TWO, "mse_loss", {}, "'mse_loss', which takes one target, and there are digit, ink: give a function"),
        (REAL, "mse_los", {}, r"torch.nn.functional has no such function: did you mean mse_loss\?"),
        (REAL, "mse_loss", {"beta": 1}, r"loss_arguments.beta is no argument of mse_loss: known: "),
        (REAL, "smooth_l1_loss", {"bet": 1}, r"loss_arguments.bet is no argument.*did you mean beta\?"),
        (REAL, "gaussian_nll_loss", {}, "'gaussian_nll_loss', which is called with.*'var': set objective.loss_arg"),
        (
            REAL,
            "nll_loss",
            {},
            r"target is the number of a class, and y is float32 of shape \(\): take cross_entropy",
        ),
        (REAL, "multilabel_margin_loss", {}, "target is the number of a class, and y is float32"),
        (CLASS, "", {"weight": [1.0, 2.0]}, "loss_arguments.weight has 2 numbers and y has 3 classes: give one"),
        (WEIGHTED, "", {"reduction": "sum"}, "reduction is 'sum' and data.weight is given.*leave the other out"),
        (WEIGHTED, "softmax", {}, "softmax has no `reduction`, so that rows cannot be weighted.*a parameter `weig"),
        (WEIGHTED, here(own), {}, "data.weight is 'w' and .*own has no parameter `weights`: add one, or leave"),
        (CLASS, here(weighted), {}, "missing a required argument: 'weights': set data.weight to the column"),
        (CLASS, here(needs_alpha), {}, "missing a required argument: 'alpha': set objective.loss_arguments"),
        (CLASS, here(one_value), {}, "too many positional arguments"),
        (CLASS, here(own), {"facter": 1}, r"loss_arguments.facter is no argument of .*did you mean factor\?"),
        (CLASS, f"{__name__}:own_", {}, r"has no such callable: did you mean own\?"),
        (CLASS, f"{__name__}:X", {}, "has no such callable"),
        (CLASS, "no_such_package:loss", {}, "importing no_such_package failed: ModuleNotFoundError.*PYTHONPATH"),
        (CLASS, ":loss", {}, "the form is 'package.module:callable'"),
        (CLASS, "net", {"weight": 1}, r"objective.loss_arguments is \{'weight': 1\} and objective.loss is 'net'"),
        (WEIGHTED, "net", {}, "data.weight is 'w' and objective.loss is 'net'.*leave it out"),
    ],
)
def test_what_cannot_be_is_told_before_a_batch(rows, loss, arguments, message):
    with pytest.raises(ConfigError, match=message):
        build_loss(Objective(loss=loss, loss_arguments=arguments), rows, net="net")
    assert "no_such_package" not in sys.modules
