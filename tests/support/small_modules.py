"""A small net over numbers, and what optimises it as a configuration says."""

import torch
from torch import nn
from torch.nn import functional

from sparknet.config import Net, Solver
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.objectives.optimiser import InnerSolver, build_inner_solver
from sparknet.training.objectives.recipe import Recipe

ADMITTED = sorted(
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam")
)
"""Classes of torch.optim that `solver.optimizer` takes."""
ROWS = RowSchema(
    inputs=(Column(name="x", dtype="float32", shape=(6,)),),
    targets=(Column(name="y", dtype="int64", shape=(), classes=4),),
)


def small_net(seed: int = 3) -> nn.Module:
    """Matrices, vectors and a normalisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4))


def solver_of(module: nn.Module, **settings) -> InnerSolver:
    """What section `solver` with these settings makes for a module, in a run of 20 iterations."""
    recipe = Recipe(net=Net(name="t:net"), solver=Solver(**settings))
    return build_inner_solver(recipe, ModuleObjective(module, ROWS, name="net"), total_iterations=20)


def step(module: nn.Module, solver: InnerSolver, at: int) -> None:
    """A step on random rows that are the iteration's own."""
    generator = torch.Generator().manual_seed(at)
    x, y = torch.randn(5, 6, generator=generator), torch.randint(0, 4, (5,), generator=generator)
    solver.set_rate(solver.rate(at))
    solver.optimizer.zero_grad(set_to_none=True)
    functional.cross_entropy(module(x), y).backward()
    solver.optimizer.step()


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    """Assert that all that a module holds is the same, bit for bit."""
    for (name, mine), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def groups_by_name(module: nn.Module, solver: InnerSolver, *keys: str) -> dict[str, tuple]:
    """What the optimiser has by these keys for each parameter that it steps."""
    names = {id(tensor): name for name, tensor in module.named_parameters()}
    return {
        names[id(tensor)]: tuple(group[key] for key in keys)
        for group in solver.optimizer.param_groups
        for tensor in group["params"]
    }
