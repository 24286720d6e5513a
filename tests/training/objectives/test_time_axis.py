"""Nets over time in a run: steps of a row and not rows, and batches that know nothing of each other."""

from collections.abc import Callable

import pytest
import torch

from image_rows import as_batch, image_rows
from sparknet.caffe import CaffeNet
from sparknet.config import Net
from sparknet.errors import NetError
from sparknet.training.objectives.build_objective import build_objective, build_test_objective
from sparknet.training.objectives.caffe_objective import CaffeObjective
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.objectives.time_axis import check_steps

STEPS, FEATURES = 3, 2
ROWS = image_rows((STEPS, FEATURES), dtype="float32", classes=5)
INPUT = """
name: "over time"
layer { name: "in" type: "Input" top: "data" top: "label"
  input_param { shape { dim: 4 dim: 3 dim: 2 } shape { dim: 4 } } }
"""
TIME_FIRST = """
layer { name: "slice" type: "Slice" bottom: "data" top: "a" top: "b" top: "c" slice_param { axis: 1 } }
layer { name: "concat" type: "Concat" bottom: "a" bottom: "b" bottom: "c" top: "abc" concat_param { axis: 0 } }
layer { name: "time" type: "Reshape" bottom: "abc" top: "x" reshape_param { shape { dim: 3 dim: -1 dim: 2 } } }
"""
REST = """
layer { name: "one" type: "Reduction" bottom: "%s" top: "sum" reduction_param { axis: 2 } }
layer { name: "cont" type: "Power" bottom: "sum" top: "cont" power_param { scale: 0 shift: 1 } }
layer { name: "lstm" type: "LSTM" bottom: "%s" bottom: "cont" top: "h"
  recurrent_param { num_output: 5 weight_filler { type: "gaussian" std: 0.5 } } }
"""
END = """
layer { name: "last" type: "Slice" bottom: "h" top: "early" top: "late" slice_param { axis: 0 slice_point: 2 } }
layer { name: "quiet" type: "Silence" bottom: "early" }
layer { name: "flat" type: "Reshape" bottom: "late" top: "score" reshape_param { shape { dim: -1 dim: 5 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }
"""
ROWS_AS_TIME = """
layer { name: "mean" type: "Reduction" bottom: "h" top: "loss" loss_weight: 1 }
layer { name: "quiet" type: "Silence" bottom: "label" }
"""


def recipe(text: str) -> Recipe:
    return Recipe.read(Net(prototxt=text))


def test_steps_of_a_row_are_taken():
    objective = build_objective(recipe(INPUT + TIME_FIRST + REST % ("x", "x") + END), ROWS, batch_size=6, seed=1)
    assert isinstance(objective, CaffeObjective)
    # a last batch is often smaller
    for rows in (6, 2):
        found = objective.loss(as_batch(torch.randn(rows, STEPS, FEATURES), torch.arange(rows) % 5))
        assert torch.isfinite(found)


@pytest.mark.parametrize(
    "build",
    [
        lambda text: build_objective(recipe(text), ROWS, batch_size=6, seed=1),
        lambda text: build_test_objective(recipe(text), ROWS),
    ],
)
def test_rows_for_steps_are_refused(build: Callable[[str], object]):
    with pytest.raises(NetError, match=r"'lstm' \(LSTM\) takes the rows of a batch for steps in time, [46]"):
        build(INPUT + REST % ("data", "data") + ROWS_AS_TIME)


def test_a_batch_that_the_net_fixes_is_no_time():
    fixed = TIME_FIRST.replace("dim: -1", "dim: 4")
    check_steps(CaffeNet.from_prototxt(INPUT + fixed + REST % ("x", "x") + END))


def test_the_weights_are_those_of_the_seed_all_the_same():
    """The second look at the net draws nothing."""
    text = INPUT + TIME_FIRST + REST % ("x", "x") + END
    torch.manual_seed(3)
    check_steps(CaffeNet.from_prototxt(text))
    first = torch.rand(1)
    torch.manual_seed(3)
    CaffeNet.from_prototxt(text)
    assert torch.equal(first, torch.rand(1))


def test_no_batch_goes_on_where_another_ended():
    objective = build_objective(recipe(INPUT + TIME_FIRST + REST % ("x", "x") + END), ROWS, batch_size=4, seed=1)
    batch = as_batch(torch.randn(4, STEPS, FEATURES), torch.arange(4))
    assert objective.loss(batch).item() == objective.loss(batch).item()
    assert objective.measure(batch) == objective.measure(batch)
