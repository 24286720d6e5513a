"""A module as an objective: modes, frozen normalisation, devices, scores, and training on any loss."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from named_rows import classes, number, rows_of
from sparknet.config import Net, Objective
from sparknet.errors import NetError
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.find_net import build_net
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.objectives.net_weights import freeze
from sparknet.training.objectives.recipe import Recipe

X = number("x", 3)
CLASS = rows_of([X], [classes("y", 4)])
TWO = rows_of([number("a", 3), number("b", 2)], [classes("digit", 4), number("ink"), number("place", 2)])
GENERATOR = torch.Generator().manual_seed(2)
BATCH = {"x": torch.randn(8, 3, generator=GENERATOR), "y": torch.arange(8) % 4}


def normalised() -> nn.Module:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.BatchNorm1d(5, affine=False))
    return nn.Sequential(backbone, nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4))


class Lazy(nn.Module):
    """As a user writes who does not count inputs."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.Linear(6, classes))

    def forward(self, x):
        return self.layers(x)


class LazyWithLoss(nn.Module):
    """Needs its targets in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(4)

    def forward(self, x, labels):
        logits = self.layer(x)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Heads(nn.Module):
    """A head for each target, as wide as it has to be."""

    def __init__(self, input_shapes: dict, targets: dict) -> None:
        super().__init__()
        self.given = (input_shapes, targets)
        width = sum(shape[0] for shape in input_shapes.values())
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in targets.items()})

    def forward(self, b, a):
        inputs = torch.cat([a, b], 1)
        return {name: head(inputs) for name, head in self.heads.items()}


def of_two(outputs, targets):
    digit = functional.cross_entropy(outputs["digit"], targets["digit"])
    return digit + functional.mse_loss(outputs["ink"][:, 0], targets["ink"])


def here(kind) -> str:
    return f"{__name__}:{kind.__name__}"


def built(kind, rows, seed=0, **objective):
    recipe = Recipe(net=Net(name=here(kind)), objective=Objective(**objective))
    return build_objective(recipe, rows, batch_size=8, seed=seed)


def test_frozen_normalisation_keeps_its_statistics():
    module = normalised()
    freeze(module, ("0.*",))
    objective = ModuleObjective(module, CLASS, name="net")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.eval()
    objective.train_mode()
    objective.loss(BATCH)
    moved = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    # One without parameters has none that are frozen.
    assert moved == {
        f"{at}.{key}" for at in ("0.2", "1") for key in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert module[2].training


def test_normalisation_of_which_a_part_is_trained_learns():
    module = normalised()
    freeze(module, ("0.*.weight",))
    objective = ModuleObjective(module, CLASS, name="net")
    objective.train_mode()
    assert module[0][1].training


def test_frozen_parameters_are_not_learnable():
    module = normalised()
    freeze(module, ("0.*",))
    objective = ModuleObjective(module, CLASS, name="net")
    learnable = {id(one.tensor) for one in objective.learnable}
    assert learnable == {id(one) for one in (*module[1].parameters(), *module[3].parameters())}


def test_measures_leave_the_module_as_it_is():
    module = normalised().train()
    objective = ModuleObjective(module, CLASS, name="net")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert objective.measure(BATCH) == objective.measure(BATCH)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_scores_are_logits_without_a_gradient():
    module = normalised()
    objective = ModuleObjective(module, CLASS, name="net")
    scores = objective.scores({"x": BATCH["x"]})
    assert torch.equal(scores, module.eval()(BATCH["x"]))
    assert not scores.requires_grad
    with pytest.raises(NetError, match=r"net flat returned \(24,\); scores are \[batch, classes\]"):
        ModuleObjective(nn.Flatten(0), CLASS, name="flat").scores(BATCH)


def test_loss_and_measures_move_with_the_module():
    section = Objective(
        measures=("classification.MulticlassF1Score",), loss_arguments={"weight": [1.0, 2.0, 3.0, 4.0]}
    )
    meta = torch.device("meta")
    objective = ModuleObjective(nn.Linear(3, 4), CLASS, section, name="net").to(meta)
    loss = objective.loss({name: tensor.to(meta) for name, tensor in BATCH.items()})
    assert (loss.device, objective.module.weight.device) == (meta, meta)


def test_lazy_nets_are_made_whole_under_the_seed():
    first, same, other = (built(Lazy, CLASS, seed=seed).module.state_dict() for seed in (1, 1, 2))
    assert first["layers.0.weight"].shape == (6, 3)
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])
    # The pass that tells the shapes is none of training.
    assert torch.equal(first["layers.1.running_mean"], torch.zeros(6))
    assert built(Lazy, CLASS).module.training


def test_lazy_nets_with_a_loss_of_their_own():
    objective = built(LazyWithLoss, CLASS, loss="net")
    assert objective.module.layer.weight.shape == (4, 3)
    sums = objective.measure(BATCH)
    assert objective.conclude(sums, 8) == {"loss": pytest.approx(objective.loss(BATCH).item())}
    with pytest.raises(NetError, match=r"missing a required argument: 'labels'.*give those a default"):
        objective.scores(BATCH)


def test_a_net_of_several_inputs_and_heads():
    objective = built(Heads, TWO, loss=here(of_two))
    assert objective.module.given == ({"a": (3,), "b": (2,)}, {"digit": 4, "ink": 1, "place": 2})
    batch = {"a": torch.randn(8, 3), "b": torch.randn(8, 2), "digit": torch.arange(8) % 4, "ink": torch.randn(8)}
    batch["place"] = torch.randn(8, 2)
    optimizer = torch.optim.SGD([one.tensor for one in objective.learnable], lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = objective.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    outputs = objective.module(a=batch["a"], b=batch["b"])
    assert objective.loss(batch).item() == of_two(outputs, batch).item()


@pytest.mark.parametrize(
    ("rows", "targets"),
    [(CLASS, {"y": 4}), (rows_of([X], [number("v"), number("z", 2, 3)]), {"v": 1, "z": 6})],
)
def test_a_callable_is_told_how_wide_its_heads_are(rows, targets):
    seen = []
    module = build_net(Recipe(net=Net(name=here(told), arguments={"seen": seen})), rows, seed=0)
    assert isinstance(module, nn.Linear)
    assert seen == [targets]


def told(targets, seen):
    seen.append(targets)
    return nn.Linear(1, 1)
