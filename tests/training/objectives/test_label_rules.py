"""Labels held against the layers and losses that read them: what is legal, who says so, and what is told."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from image_rows import image_rows
from named_rows import rows_of
from sparknet.config import Net
from sparknet.config import Objective as ObjectiveSection
from sparknet.data.rows.columns import Column
from sparknet.data.rows.extremes import Extremes
from sparknet.errors import DataError
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.label_rules import check_extremes
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.recipe import Recipe

NET = """
layer {{ name: "in" type: "Input" top: "data" top: "label"
  input_param {{ shape {{ dim: 4 dim: 3 }} shape {{ {dims} }} }} }}
layer {{ name: "score" type: "InnerProduct" bottom: "data" top: "score"
  inner_product_param {{ num_output: 5 weight_filler {{ type: "xavier" }} }} }}
{layers}
"""
LOSS = 'layer {{ name: "loss" type: "{kind}" bottom: "score" bottom: "label" top: "loss" {more} }}'
ONE = "dim: 4"


def extremes(*values: float) -> Extremes:
    return Extremes.of(np.array(values), lambda at: f"row {at}")


def objective_of(layers: str, *, dims: str = ONE, label: Column | None = None) -> Objective:
    rows = image_rows((3,), dtype="float32", classes=None)
    column = label or Column(name="label", dtype="int64", shape=())
    rows = rows_of(rows.inputs, [column])
    return build_objective(
        Recipe.read(Net(prototxt=NET.format(dims=dims, layers=layers))), rows, batch_size=4, seed=1
    )


def refusal(objective: Objective, *values: float, testing: bool = False) -> str:
    with pytest.raises(DataError) as refused:
        check_extremes(objective.label_rules(testing=testing), {"label": extremes(*values)})
    return str(refused.value)


def accept(objective: Objective, *values: float, testing: bool = False) -> None:
    check_extremes(objective.label_rules(testing=testing), {"label": extremes(*values)})


CLASSES = ["SoftmaxWithLoss", "HingeLoss", "MultinomialLogisticLoss"]


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_are_whole_numbers_below_the_number_of_scores(kind: str) -> None:
    objective = objective_of(LOSS.format(kind=kind, more=""))
    accept(objective, 0, 3, 4, 4, 0)
    told = refusal(objective, 2, 5, 0)
    assert re.search(
        rf":\d+: layer 'loss' \({kind}\): column label has 5 in row 1; it takes whole numbers from 0 to 4: "
        r"correct the rows, or set num_output of the layer that gives the scores to 6 at least",
        told,
    )
    assert "has -1 in row 0" in refusal(objective, -1, 2)
    assert "has 1.5 in row 1" in refusal(objective, 0, 1.5, 4)


def test_labels_from_1_are_told_as_such() -> None:
    objective = objective_of(LOSS.format(kind="SoftmaxWithLoss", more=""))
    told = refusal(objective, 3, 1, 5, 2)
    assert "numbered from 1, and must be from 0: take 1 off each, or set num_output" in told
    assert "numbered from 1" not in refusal(objective, 0, 5)
    assert "set ignore_label in loss_param to 5" in told


def test_an_ignored_label_is_legal_beside_the_classes_and_no_other_is() -> None:
    ignoring = LOSS.format(kind="SoftmaxWithLoss", more="loss_param { ignore_label: 255 }")
    objective = objective_of(ignoring)
    accept(objective, 0, 4, 255)
    assert "has 254 in row 2; it takes whole numbers from 0 to 4, and 255, which does not count" in refusal(
        objective, 0, 255, 254
    )
    below = objective_of(LOSS.format(kind="SoftmaxWithLoss", more="loss_param { ignore_label: -1 }"))
    accept(below, -1, 0, 4)
    assert "has -2" in refusal(below, -1, 0, -2)


def test_each_state_of_a_net_says_what_it_takes() -> None:
    """The loss ignores 255; Accuracy, which only tests have, does not."""
    ignoring = LOSS.format(kind="SoftmaxWithLoss", more="loss_param { ignore_label: 255 }")
    accuracy = LOSS.format(kind="Accuracy", more="include { phase: TEST }").replace('"loss"', '"accuracy"')
    objective = objective_of(ignoring + accuracy)
    accept(objective, 0, 255)
    told = refusal(objective, 0, 255, testing=True)
    assert "'accuracy' (Accuracy)" in told
    assert "set ignore_label in accuracy_param to 255" in told


def test_targets_of_a_cross_entropy_are_shares() -> None:
    numbers = Column(name="label", dtype="float32", shape=(5,))
    objective = objective_of(
        LOSS.format(kind="SigmoidCrossEntropyLoss", more=""), dims="dim: 4 dim: 5", label=numbers
    )
    accept(objective, 0, 0.25, 1)
    assert "has 1.5 in row 1; it takes numbers from 0 to 1: correct the rows" in refusal(objective, 0, 1.5)
    assert "if -1 marks what does not count, set ignore_label in loss_param to -1" in refusal(objective, -1, 1)


def test_numbers_to_be_found_may_be_any() -> None:
    numbers = Column(name="label", dtype="float32", shape=(5,))
    objective = objective_of(LOSS.format(kind="EuclideanLoss", more=""), dims="dim: 4 dim: 5", label=numbers)
    accept(objective, -1e9, 0.5, 1e30)


WAYS = {
    "reshape": 'layer { name: "r" type: "Reshape" bottom: "label" top: "l" reshape_param { shape { dim: -1 } } }',
    "split": 'layer { name: "s" type: "Split" bottom: "label" top: "l" top: "m" }'
    'layer { name: "quiet" type: "Silence" bottom: "m" }',
    "flatten": 'layer { name: "f" type: "Flatten" bottom: "label" top: "f" flatten_param { axis: 0 } }'
    'layer { name: "r" type: "Reshape" bottom: "f" top: "l" reshape_param { shape { dim: 0 } } }',
}


@pytest.mark.parametrize("way", WAYS)
def test_a_label_is_followed_through_layers_that_leave_it_as_it_is(way: str) -> None:
    loss = LOSS.format(kind="SoftmaxWithLoss", more="").replace('"label"', '"l"')
    assert "layer 'loss'" in refusal(objective_of(WAYS[way] + loss), 0, 5)


def test_what_a_layer_makes_of_a_label_is_not_judged() -> None:
    shifted = 'layer { name: "less" type: "Power" bottom: "label" top: "label" power_param { shift: -1 } }'
    accept(objective_of(shifted + LOSS.format(kind="SoftmaxWithLoss", more="")), 1, 5)


def module_objective(module: nn.Module, loss: str = "", **arguments: Any) -> ModuleObjective:
    rows = rows_of(
        [Column(name="image", dtype="float32", shape=(3,))], [Column(name="label", dtype="int64", shape=())]
    )
    return ModuleObjective(module, rows, ObjectiveSection(loss=loss, loss_arguments=arguments), name="mine")


@pytest.mark.parametrize("loss", ["", "cross_entropy", "nll_loss", "multi_margin_loss"])
def test_a_modules_loss_takes_as_many_classes_as_it_returns(loss: str) -> None:
    module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
    module[1].eval()
    objective = module_objective(module, loss)
    accept(objective, 0, 3)
    told = refusal(objective, 1, 4)
    assert f"objective.loss {loss or 'cross_entropy'} over net mine: column label has 4 in row 1" in told
    assert "numbered from 1" in told
    # Nothing is left of the look: neither the mode of a part nor a weight without memory.
    assert [part.training for part in module] == [True, False, True, True]
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"cpu"}


def test_a_modules_ignored_label_is_legal() -> None:
    accept(module_objective(nn.Linear(3, 4)), -100, 0)
    objective = module_objective(nn.Linear(3, 4), "cross_entropy", ignore_index=-1)
    accept(objective, -1, 0)
    assert "set ignore_index in objective.loss_arguments to -2" in refusal(objective, -2)


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) if float(x.sum()) >= 0 else self.inner(-x)


def test_a_module_that_looks_at_values_is_not_judged() -> None:
    accept(module_objective(LooksAtValues()), 99)
