"""Which parameter has which rate and which decay: by pattern, by kind, and by Caffe's multipliers."""

import pytest
import torch
from torch import nn

from image_rows import image_rows
from small_modules import groups_by_name, small_net, solver_of
from sparknet.config import Net, ParameterGroup, Solver
from sparknet.errors import ConfigError
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.optimiser import build_inner_solver
from sparknet.training.objectives.recipe import Recipe

CAFFE = """
name: "multiplied"
layer { name: "rows" type: "Data" top: "image" top: "class" data_param { source: "x" batch_size: 6 } }
layer { name: "hidden" type: "InnerProduct" bottom: "image" top: "hidden"
  param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
layer { name: "norm" type: "BatchNorm" bottom: "hidden" top: "norm" }
layer { name: "frozen" type: "InnerProduct" bottom: "norm" top: "frozen" param { lr_mult: 0 } param { lr_mult: 0 }
  inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
layer { name: "score" type: "InnerProduct" bottom: "frozen" top: "score" param { lr_mult: 10 decay_mult: 3 }
  inner_product_param { num_output: 3 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "score" bottom: "class" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "class" top: "loss" }
"""


def test_groups_have_their_own_rate_and_decay() -> None:
    module = small_net()
    solver = solver_of(
        module,
        optimizer="AdamW",
        weight_decay=0.1,
        decay_norms_and_biases=False,
        groups=(ParameterGroup(pattern="3.*", rate_factor=0.5, weight_decay=0.3),),
    )
    solver.set_rate(0.02)
    assert groups_by_name(module, solver, "lr", "weight_decay") == {
        "0.weight": (0.02, 0.1),
        "0.bias": (0.02, 0.0),
        "1.weight": (0.02, 0.0),
        "1.bias": (0.02, 0.0),
        "3.weight": (0.01, 0.3),
        "3.bias": (0.01, 0.0),
    }


def test_the_first_pattern_that_fits_counts() -> None:
    module = small_net()
    groups = (
        ParameterGroup(pattern="*.bias", rate_factor=2.0),
        ParameterGroup(pattern="[03].*", rate_factor=0.5),
    )
    solver = solver_of(module, groups=groups)
    solver.set_rate(1.0)
    found = {name: rate for name, (rate,) in groups_by_name(module, solver, "lr").items()}
    biases = {"0.bias": 2.0, "1.bias": 2.0, "3.bias": 2.0}
    assert found == biases | {"0.weight": 0.5, "3.weight": 0.5, "1.weight": 1.0}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["3.weigth"], r"has the pattern '3\.weigth', which fits no parameter; nearest is 3\.weight: correct it"),
        (["%"], r"fits no parameter; they are 0\.weight, 0\.bias, 1\.weight, 1\.bias and so on"),
        (["*", "3.*"], r"has the pattern '3\.\*' behind '\*', and those before it take all that it fits: put it"),
        (["3.w*", "3.b*", "3.*"], r"has the pattern '3\.\*' behind '3\.w\*', and those"),
    ],
)
def test_patterns_without_effect_are_refused(patterns, message) -> None:
    with pytest.raises(ConfigError, match=message):
        solver_of(small_net(), groups=tuple(ParameterGroup(pattern=pattern) for pattern in patterns))


def test_parameters_of_rate_0_are_not_the_optimisers() -> None:
    module = small_net()
    solver = solver_of(module, groups=(ParameterGroup(pattern="0.*", rate_factor=0.0),))
    assert groups_by_name(module, solver).keys() == {"1.weight", "1.bias", "3.weight", "3.bias"}


class Odd(nn.Module):
    """A norm of two axes, a bias of two axes, a table that is called something like one, and a shared matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm((2, 3))
        self.bias = nn.Parameter(torch.zeros(2, 3))
        self.bias_table = nn.Parameter(torch.zeros(2, 3))
        self.embed = nn.Linear(6, 6, bias=False)
        self.head = nn.Linear(6, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return x


def test_norms_biases_and_vectors_are_told_by_what_they_are() -> None:
    module = Odd()
    solver = solver_of(module, optimizer="SGD", weight_decay=0.1, decay_norms_and_biases=False)
    assert groups_by_name(module, solver, "weight_decay") == {
        "norm.weight": (0.0,),
        "norm.bias": (0.0,),
        "bias": (0.0,),
        "bias_table": (0.1,),
        "embed.weight": (0.1,),
    }


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_a_shared_parameter_goes_by_each_of_its_names(name) -> None:
    module = Odd()
    solver = solver_of(module, groups=(ParameterGroup(pattern=name, rate_factor=3.0),))
    assert groups_by_name(module, solver, "lr_mult")["embed.weight"] == (3.0,)


@pytest.mark.parametrize(
    ("settings", "decay"), [({"weight_decay": 0.1}, 0.1), ({}, 0.01)], ids=["told", "the class's own"]
)
def test_caffes_multipliers_hold_beside_torchs_optimisers(settings, decay) -> None:
    recipe = Recipe.read(Net(prototxt=CAFFE), Solver(optimizer="AdamW", **settings))
    objective = build_objective(recipe, image_rows((1, 5, 5), dtype="float32", classes=3), batch_size=6, seed=0)
    solver = build_inner_solver(recipe, objective, total_iterations=9)
    solver.set_rate(0.5)
    found = groups_by_name(objective.module, solver, "lr", "weight_decay")
    assert found == {
        "hidden.weight": (0.5, decay),
        "hidden.bias": (1.0, 0.0),
        "score.weight": (5.0, decay * 3),
    }
