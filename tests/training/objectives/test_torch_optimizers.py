"""Any class of torch.optim: found by name, given its arguments, and refused with a reason and a remedy."""

import copy

import pytest
import torch
from torch import nn

from small_modules import ADMITTED, ROWS, assert_equal, groups_by_name, small_net, solver_of, step
from sparknet.caffe.solver.updates import CaffeOptimizer
from sparknet.config import Net, ParameterGroup, Solver
from sparknet.errors import ConfigError
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.objectives.optimiser import build_inner_solver, check_solver
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.state_bytes import dump_optimizer, load_optimizer


@pytest.mark.parametrize("name", ADMITTED)
def test_each_is_torchs_own(name: str) -> None:
    """The very steps of the class as torch makes it, with its own defaults."""
    mine, theirs = small_net(), small_net()
    solver = solver_of(mine, optimizer=name, learning_rate=0.02)
    if name == "Muon":
        by_hand = [
            torch.optim.Muon([theirs[0].weight, theirs[3].weight], lr=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([p for p in theirs.parameters() if p.dim() == 1], lr=0.02),
        ]
    else:
        momentum = {"momentum": 0.9} if name == "SGD" else {}
        by_hand = [getattr(torch.optim, name)(theirs.parameters(), lr=0.02, **momentum)]
    for at in range(4):
        step(mine, solver, at)
        generator = torch.Generator().manual_seed(at)
        x, y = torch.randn(5, 6, generator=generator), torch.randint(0, 4, (5,), generator=generator)
        theirs.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        for optimizer in by_hand:
            optimizer.step()
    assert not torch.equal(mine[0].weight, small_net()[0].weight)
    assert_equal(mine, theirs)


@pytest.mark.parametrize("name", ADMITTED)
def test_goes_on_exactly_from_its_bytes(name: str) -> None:
    whole, broken = small_net(), small_net()
    settings = {"optimizer": name, "learning_rate": 0.01, "policy": "cosine", "warmup_steps": 3}
    first, second = solver_of(whole, **settings), solver_of(broken, **settings)
    for at in range(6):
        step(whole, first, at)
    for at in range(3):
        step(broken, second, at)
    data = dump_optimizer(second.optimizer, {"scale": 4.0})
    # A new process: another module with these weights, and an optimiser that has never stepped.
    healed = copy.deepcopy(broken)
    third = solver_of(healed, **settings)
    assert load_optimizer(third.optimizer, data) == {"scale": 4.0}
    for at in range(3, 6):
        step(healed, third, at)
    assert not torch.equal(whole[0].weight, small_net()[0].weight)
    assert_equal(whole, healed)


@pytest.mark.parametrize("name", ADMITTED)
def test_forgets_what_it_was(name: str) -> None:
    module = small_net()
    solver = solver_of(module, optimizer=name, learning_rate=0.01)
    begun = copy.deepcopy(module.state_dict())
    for at in range(2):
        step(module, solver, at)
    once = copy.deepcopy(module)
    module.load_state_dict(begun)
    solver.forget()
    for at in range(2):
        step(module, solver, at)
    assert_equal(once, module)


def test_arguments_reach_the_class_and_lists_become_tuples() -> None:
    solver = solver_of(
        small_net(), optimizer="AdamW", arguments={"betas": [0.8, 0.95], "amsgrad": True}, weight_decay=0.3
    )
    (group,) = solver.optimizer.param_groups
    assert (group["betas"], group["amsgrad"], group["weight_decay"]) == ((0.8, 0.95), True, 0.3)


@pytest.mark.parametrize(
    ("settings", "momentum"),
    [
        ({"optimizer": "SGD"}, 0.9),
        ({"optimizer": "SGD", "momentum": 0.5}, 0.5),
        ({"optimizer": "RMSprop", "momentum": 0.5}, 0.5),
        ({"optimizer": "RMSprop"}, 0),
        ({"optimizer": "Muon"}, 0.95),
        ({"optimizer": "Muon", "momentum": 0.5}, 0.5),
    ],
)
def test_momentum_is_the_given_one_or_a_default(settings, momentum) -> None:
    assert solver_of(small_net(), **settings).optimizer.param_groups[0]["momentum"] == momentum


REFUSED = [
    ({"optimizer": "Adamw"}, r"solver\.optimizer is 'Adamw'; it must be one of .*: did you mean AdamW\?"),
    ({"optimizer": "AdamX"}, r"did you mean Adam\w*\?"),
    ({"optimizer": "Optimizer"}, r"solver\.optimizer is 'Optimizer'; it must be one of ASGD, Adadelta"),
    ({"optimizer": "zzz"}, "Rprop, SGD: name another"),
    ({"optimizer": "LBFGS"}, "'LBFGS'; it looks at the loss several times a step.*take another one"),
    ({"optimizer": "SparseAdam"}, "sparse gradients alone"),
    ({"optimizer": "AdamW", "arguments": {"beta": 1}}, r"solver\.arguments\.beta is 1.*did you mean betas\?"),
    ({"optimizer": "SGD", "arguments": {"zzz": 1}}, "takes no zzz: it takes dampening, nesterov"),
    ({"optimizer": "AdamW", "arguments": {"betas": [2.0, 0.9]}}, r"does not take betas=\(2\.0, 0\.9\).*correct"),
    ({"optimizer": "AdamW", "arguments": {"betas": [0.9]}}, r"does not take betas=\(0\.9,\).*correct"),
    # It is taken, and fails at the first step.
    ({"optimizer": "AdamW", "arguments": {"eps": "small"}}, "does not take eps='small'.*correct"),
    ({"optimizer": "Adam", "arguments": {"differentiable": True}}, r"differentiable is True; nothing .*leave it"),
    ({"optimizer": "Adam", "arguments": {"capturable": True}}, r"capturable is True; steps are not captured"),
    (
        {"optimizer": "AdamW", "momentum": 0.9},
        r"solver\.momentum is 0\.9, and AdamW takes no momentum: leave it out",
    ),
    # The name first: another class might take it.
    ({"optimizer": "Sgd", "momentum": 0.9}, r"did you mean SGD\?"),
    ({"optimizer": "Rprop", "weight_decay": 0.1}, r"solver\.weight_decay is 0\.1, and Rprop takes no weight_decay"),
    ({"optimizer": "Rprop", "decay_norms_and_biases": False}, r"decay_norms_and_biases is False, and Rprop takes"),
    (
        {"optimizer": "Rprop", "groups": (ParameterGroup(pattern="0.*", weight_decay=0.5),)},
        r"solver\.groups '0\.\*' weight_decay is 0\.5, and Rprop takes no weight_decay: leave it out",
    ),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_no_net_could_use_is_refused_before_there_is_one(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check_solver(Recipe(net=Net(name="t:net"), solver=Solver(**settings)))
    with pytest.raises(ConfigError, match=message):
        solver_of(small_net(), **settings)


def test_what_does_not_suit_a_net_is_refused_before_a_worker_builds_it() -> None:
    recipe = Recipe(net=Net(name="t:net"), solver=Solver(groups=(ParameterGroup(pattern="9.*"),)))
    check_solver(recipe)
    with pytest.raises(ConfigError, match="fits no parameter"):
        check_solver(recipe, ModuleObjective(small_net(), ROWS, name="net"))


def test_a_caffe_solver_says_itself_how_it_optimises() -> None:
    recipe = Recipe.read(Net(name="t:net"), Solver(prototxt='base_lr: 0.1 lr_policy: "fixed" max_iter: 4\n'))
    check_solver(recipe)
    solver = build_inner_solver(recipe, ModuleObjective(small_net(), ROWS, name="net"), total_iterations=4)
    assert isinstance(solver.optimizer, CaffeOptimizer)


def test_a_net_without_anything_to_train_is_refused() -> None:
    module = small_net().requires_grad_(False)
    for settings in ({}, {"optimizer": "Muon"}):
        with pytest.raises(ConfigError, match=r"no parameter is left to be trained: net\.freeze"):
            solver_of(module, **settings)
    with pytest.raises(ConfigError, match="no parameter is left to be trained"):
        solver_of(small_net(), groups=(ParameterGroup(pattern="*", rate_factor=0.0),))


def test_muon_steps_hidden_matrices_and_adamw_all_else() -> None:
    module = nn.Sequential(nn.Embedding(9, 6), nn.Conv1d(6, 6, 1), nn.Linear(6, 4))
    solver = solver_of(module, optimizer="Muon", learning_rate=0.01)
    found = groups_by_name(module, solver, "weight_decay")
    # Each class by its own default: Muon's is 0.1 and AdamW's 0.01.
    assert found == {name: (0.1 if name == "2.weight" else 0.01,) for name, _ in module.named_parameters()}
    told = solver_of(module, optimizer="Muon", weight_decay=0.2, decay_norms_and_biases=False)
    assert groups_by_name(module, told, "weight_decay") == {
        name: (0.0 if name.endswith("bias") else 0.2,) for name, _ in module.named_parameters()
    }


def test_muon_alone_where_all_are_matrices_and_never_where_none_is() -> None:
    assert isinstance(solver_of(nn.Linear(6, 4, bias=False), optimizer="Muon").optimizer, torch.optim.Muon)
    with pytest.raises(ConfigError, match="which steps matrices, and no parameter is one: take another"):
        solver_of(nn.LayerNorm(6), optimizer="Muon")


def test_two_optimisers_share_no_closure() -> None:
    with pytest.raises(ValueError, match=r"share no closure; call step\(\) without"):
        solver_of(small_net(), optimizer="Muon").optimizer.step(lambda: 0.0)
