"""Any class of torch.optim: built by name, and its state goes through bytes without a trace."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from sparknet.config import Net, ParameterGroup, Solver
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import ConfigError
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.objectives.optimiser import InnerSolver, build_inner_solver
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.state_bytes import dump_optimizer, load_optimizer

ADMITTED = sorted(
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam")
)
ROWS = RowSchema(
    inputs=(Column(name="x", dtype="float32", shape=(6,)),),
    targets=(Column(name="y", dtype="int64", shape=(), classes=4),),
)


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4))


def solver_of(module: nn.Module, **settings) -> InnerSolver:
    recipe = Recipe(net=Net(name="t:net"), solver=Solver(**settings))
    return build_inner_solver(recipe, ModuleObjective(module, ROWS, name="net"), total_iterations=20)


def step(module: nn.Module, solver: InnerSolver, at: int) -> None:
    generator = torch.Generator().manual_seed(at)
    x, y = torch.randn(5, 6, generator=generator), torch.randint(0, 4, (5,), generator=generator)
    solver.set_rate(solver.rate(at))
    solver.optimizer.zero_grad(set_to_none=True)
    functional.cross_entropy(module(x), y).backward()
    solver.optimizer.step()


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ADMITTED)
def test_goes_on_exactly_from_its_bytes(name: str) -> None:
    whole, broken = net(), net()
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
    assert not equal(whole, net())
    assert equal(whole, healed)


@pytest.mark.parametrize("name", ADMITTED)
def test_forgets_what_it_was(name: str) -> None:
    module = net()
    solver = solver_of(module, optimizer=name, learning_rate=0.01)
    begun = copy.deepcopy(module.state_dict())
    for at in range(2):
        step(module, solver, at)
    once = copy.deepcopy(module.state_dict())
    module.load_state_dict(begun)
    solver.forget()
    for at in range(2):
        step(module, solver, at)
    assert all(torch.equal(once[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "Adamw"}, r"solver\.optimizer is 'Adamw'.*did you mean AdamW\?"),
        ({"optimizer": "LBFGS"}, "looks at the loss several times a step"),
        ({"optimizer": "SparseAdam"}, "sparse gradients alone"),
        ({"optimizer": "AdamW", "arguments": {"beta": 1}}, r"solver\.arguments\.beta is 1.*did you mean betas\?"),
        ({"optimizer": "AdamW", "arguments": {"betas": [2.0, 0.9]}}, "does not take betas=.*correct"),
        ({"optimizer": "Rprop", "weight_decay": 0.1}, r"solver\.weight_decay is 0\.1, and Rprop takes no"),
        ({"groups": (ParameterGroup(pattern="9.*"),)}, "fits no parameter"),
    ],
)
def test_wrong_ones_are_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        solver_of(net(), **settings)


def test_groups_have_their_own_rate_and_decay() -> None:
    module = net()
    solver = solver_of(
        module,
        optimizer="AdamW",
        weight_decay=0.1,
        decay_norms_and_biases=False,
        groups=(ParameterGroup(pattern="3.*", rate_factor=0.5, weight_decay=0.3),),
    )
    solver.set_rate(0.02)
    found = {
        id(tensor): (group["lr"], group["weight_decay"])
        for group in solver.optimizer.param_groups
        for tensor in group["params"]
    }
    named = {name: found[id(tensor)] for name, tensor in module.named_parameters()}
    assert named == {
        "0.weight": (0.02, 0.1),
        "0.bias": (0.02, 0.0),
        "1.weight": (0.02, 0.0),
        "1.bias": (0.02, 0.0),
        "3.weight": (0.01, 0.3),
        "3.bias": (0.01, 0.0),
    }


def test_muon_steps_matrices_and_adamw_all_else() -> None:
    solver = solver_of(net(), optimizer="Muon", learning_rate=0.01)
    kinds = [len(group["params"]) for group in solver.optimizer.param_groups]
    assert kinds == [2, 4]
    with pytest.raises(ConfigError, match="no parameter is one"):
        solver_of(nn.LayerNorm(6), optimizer="Muon")
    with pytest.raises(ValueError, match="share no closure"):
        solver.optimizer.step(lambda: 0.0)


def test_accumulated_batches_are_averaged() -> None:
    assert solver_of(net(), accumulate=4).batch_share == 0.25
    assert solver_of(net(), accumulate=4).batches_per_step == 4
