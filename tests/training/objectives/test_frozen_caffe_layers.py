"""`net.freeze` with Caffe's nets: frozen layers stay, whichever optimiser decays the others."""

import pytest
import torch

from image_rows import as_batch, image_rows
from sparknet.config import Net, Solver
from sparknet.errors import ConfigError
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.optimiser import build_inner_solver
from sparknet.training.objectives.recipe import Recipe

NET = """
name: "two"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 8 dim: 8 } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 4 } } }
layer { name: "ip1" type: "InnerProduct" bottom: "data" top: "ip1"
  inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""
CAFFE = 'base_lr: 0.1 momentum: 0.9 weight_decay: 0.5 lr_policy: "fixed" max_iter: 10 type: "SGD"'


def trained(net: Net, solver: Solver) -> dict[str, bool]:
    """Which parameters are the same after two steps."""
    recipe = Recipe.read(net, solver)
    objective = build_objective(recipe, image_rows(), batch_size=4, seed=0)
    before = {name: tensor.clone() for name, tensor in objective.module.state_dict().items()}
    inner = build_inner_solver(recipe, objective, total_iterations=10)
    objective.train_mode()
    generator = torch.Generator().manual_seed(0)
    for at in range(2):
        inner.set_rate(inner.rate(at))
        inner.optimizer.zero_grad()
        images = torch.rand(4, 3, 8, 8, generator=generator)
        objective.loss(as_batch(images, torch.arange(4))).backward()
        inner.optimizer.step()
    return {name: torch.equal(tensor, before[name]) for name, tensor in objective.module.state_dict().items()}


@pytest.mark.parametrize("solver", [Solver(weight_decay=0.5), Solver(prototxt=CAFFE)], ids=["torch", "caffe"])
def test_frozen_layers_of_a_file_stay(solver):
    assert trained(Net(prototxt=NET, freeze=("ip1.*",)), solver) == {
        "ip1.weight": True,
        "ip1.bias": True,
        "ip2.weight": False,
        "ip2.bias": False,
    }
    assert not any(trained(Net(prototxt=NET), solver).values())


def test_a_snapshot_has_a_history_of_frozen_layers_too():
    net = Net(prototxt=NET, freeze=("ip1.*",))
    objective = build_objective(Recipe.read(net), image_rows(), batch_size=4, seed=0)
    assert [(blob.name, blob.lr_mult) for blob in objective.learnable] == [
        ("ip1/0", 0.0),
        ("ip1/1", 0.0),
        ("ip2/0", 1.0),
        ("ip2/1", 1.0),
    ]


def test_a_pattern_that_fits_no_layer():
    with pytest.raises(ConfigError, match=r"has 'ip3\.\*', which fits no parameter; .*nearest is ip"):
        build_objective(Recipe.read(Net(prototxt=NET, freeze=("ip3.*",))), image_rows(), batch_size=4, seed=0)
