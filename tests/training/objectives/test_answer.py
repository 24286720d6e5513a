"""What a net's output says of a row: by loss and target, against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn

from sparknet.config import Objective
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import NetError
from sparknet.training.objectives.answer import Answer, answer_of
from sparknet.training.objectives.module_objective import ModuleObjective

X = Column(name="x", dtype="float32", shape=(2,))


def rows(dtype="int64", shape=(), classes=None):
    return RowSchema(inputs=(X,), targets=(Column(name="y", dtype=dtype, shape=shape, classes=classes),))


@pytest.mark.parametrize(
    ("loss", "target", "kind", "several"),
    [
        ("", rows(classes=3), "classes", False),
        ("", rows(shape=(4, 4)), "classes", True),
        ("cross_entropy", rows("float32", (3,)), "classes", False),
        ("nll_loss", rows(classes=3), "classes", False),
        ("", rows("float32"), "numbers", False),
        ("l1_loss", rows("float32", (2,)), "numbers", True),
        ("binary_cross_entropy_with_logits", rows(classes=2), "logits", False),
        ("binary_cross_entropy_with_logits", rows("float32", (5,)), "logits", True),
        ("binary_cross_entropy", rows("float32"), "probabilities", False),
        ("net", rows(classes=2), "classes", False),
        ("package.module:loss", rows("float32"), "numbers", False),
    ],
)
def test_loss_and_target_say_what_an_output_is(loss, target, kind, several):
    assert answer_of(Objective(loss=loss), target, net="n") == Answer(kind=kind, several=several)


def test_scores_become_classes_and_their_softmax():
    answer = Answer(kind="classes", several=False)
    scores = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]])
    assert answer.prediction(scores).tolist() == [1, 0]
    assert answer.probability(scores).flatten().tolist() == pytest.approx([0.25, 0.75, 0.5, 0.5])
    # As Caffe's classifiers that convolve to the end give them.
    assert answer.prediction(scores[:, :, None, None]).tolist() == [1, 0]
    pixels = torch.tensor([[[[0.0, 1.0]], [[2.0, 0.0]]]])
    assert Answer(kind="classes", several=True).prediction(pixels).tolist() == [[1, 0]]
    with pytest.raises(NetError, match=r"returned \(2, 2, 1, 2\); a prediction takes one answer for each row"):
        answer.prediction(torch.zeros(2, 2, 1, 2))
    with pytest.raises(NetError, match=r"returned \(2,\); a prediction takes a score for every class"):
        answer.prediction(torch.zeros(2))


def test_one_thing_that_is_true_or_not_has_two_probabilities_and_several_have_one_each():
    one = Answer(kind="logits", several=False)
    logits = torch.tensor([[math.log(3.0)], [-1.0]])
    assert one.prediction(logits).tolist() == one.prediction(logits[:, 0]).tolist() == [True, False]
    assert one.probability(logits[:1]).tolist()[0] == pytest.approx([0.25, 0.75])
    several = Answer(kind="logits", several=True)
    assert several.probability(torch.tensor([[0.0, math.log(3.0)]])).tolist()[0] == pytest.approx([0.5, 0.75])
    likely = Answer(kind="probabilities", several=False)
    assert likely.prediction(torch.tensor([0.6, 0.4])).tolist() == [True, False]
    assert likely.probability(torch.tensor([0.75])).tolist() == [[0.25, 0.75]]


def test_numbers_stay_and_have_no_probability():
    numbers = torch.tensor([[1.5], [2.5]])
    assert Answer(kind="numbers", several=False).prediction(numbers).tolist() == [1.5, 2.5]
    assert Answer(kind="numbers", several=True).prediction(numbers[:, 0]).tolist() == [[1.5], [2.5]]
    with pytest.raises(NetError, match="numbers have no probability"):
        Answer(kind="numbers", several=False).probability(numbers)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.pooled = nn.Linear(2, 3), nn.Linear(2, 3), nn.Flatten(0)

    def forward(self, rows):
        scores = self.used(rows)
        self.pooled(scores)
        return {"logits": scores, "hidden": rows}


def test_parts_of_a_module_are_looked_at_in_one_pass_and_hooks_are_gone():
    objective = ModuleObjective(Parts(), rows(classes=3), name="parts")
    assert list(objective.blobs) == ["used", "unused", "pooled"]
    given = {"x": torch.ones(4, 2)}
    found = objective.infer(given, ["used"])
    assert torch.equal(found["used"], found[""])
    assert torch.equal(found[""], objective.scores(given))
    assert not found[""].requires_grad
    assert not objective.module.used._forward_hooks
    assert list(objective.infer(given, ["used"], output=False)) == ["used"]
    with pytest.raises(NetError, match="net parts does not call unused in evaluation"):
        objective.infer(given, ["unused"])
    with pytest.raises(NetError, match=r"net parts: 'pooled' has shape \(12,\) for 4 rows"):
        objective.infer(given, ["pooled"])
