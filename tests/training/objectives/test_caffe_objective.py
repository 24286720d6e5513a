"""A Caffe net as an objective: measures, what is refused, torch's SGD with its multipliers, snapshots, starts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from image_rows import as_batch, image_rows
from sparknet.caffe import CaffeNet, NetSpec
from sparknet.caffe.schema import NetParameter
from sparknet.caffe.solver.settings import SolverSettings
from sparknet.caffe.solver.solverstate import read_state
from sparknet.config import Data, Net, Run, RunConfig, Solver, Sync
from sparknet.errors import CheckpointError, NetError
from sparknet.training.caffe_runs.snapshots import CaffeSnapshots, begin, make_snapshots, starting_point
from sparknet.training.coordination.rules import RunProgress
from sparknet.training.objectives.build_objective import build_objective, build_test_objective
from sparknet.training.objectives.caffe_objective import CaffeObjective
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.objectives.optimiser import build_inner_solver
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.checkpoint import INNER, WEIGHTS, Checkpoints, Saved
from sparknet.training.run_files.state_bytes import dump_optimizer, dump_weights

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
NET = """
name: "small"
layer { name: "in" type: "Input" top: "data" top: "label" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 } } }
layer { name: "score" type: "InnerProduct" bottom: "data" top: "score"
  param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "score" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" loss_weight: 0.5 }
"""
SOLVER = 'base_lr: 0.1 lr_policy: "multistep" gamma: 0.1 stepvalue: 3 momentum: 0.9 type: "%s" max_iter: 9\n'
ROWS = image_rows((3,), dtype="float32", classes=5)


def objective_of(text: str = NET, **options) -> CaffeObjective:
    made = build_objective(Recipe.read(Net(prototxt=text, **options)), ROWS, batch_size=6, seed=1)
    assert isinstance(made, CaffeObjective)
    return made


def batch(rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(2)
    return torch.from_numpy(random.standard_normal((rows, 3)).astype("f4")), torch.arange(rows) % 5


def test_measures_are_the_scalar_outputs_of_the_test_net() -> None:
    objective = objective_of()
    images, labels = batch()
    found = objective.measure(as_batch(images, labels))
    test = CaffeNet(NetSpec.from_prototxt(NET), "TEST")
    test.share_weights(objective.train)
    with torch.no_grad():
        expected = test({"data": images, "label": labels})
    assert found == {
        "accuracy": (pytest.approx(4 * float(expected["accuracy"])),),
        "loss": (pytest.approx(4 * float(expected["loss"])),),
    }
    assert objective.loss_weights == {"loss": 0.5}
    assert objective.evaluation_batch == objective.unit == 4
    assert objective.loss(as_batch(images, labels)).item() == pytest.approx(0.5 * float(expected["loss"]))
    assert objective.train.training
    assert objective.name == "small"


def test_a_net_of_the_zoo_is_one_too() -> None:
    rows = image_rows((1, 28, 28))
    objective = build_objective(Recipe(net=Net(name="lenet")), rows, batch_size=2, seed=1)
    found = objective.measure(as_batch(torch.zeros(2, 1, 28, 28), torch.tensor([1, 2])))
    assert set(found) == {"accuracy", "loss"}
    again = build_objective(Recipe(net=Net(name="lenet")), rows, batch_size=2, seed=1)
    weights = [dump_weights(each.module) for each in (objective, again)]
    assert weights[0] == weights[1]


def test_channels_last_gives_the_same() -> None:
    rows = image_rows((3, 32, 32))
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    losses: list[float] = []
    for channels_last in (False, True):
        net = Net(name="cifar10_quick", channels_last=channels_last)
        objective = build_objective(Recipe(net=net), rows, batch_size=4, seed=1)
        loss = objective.loss(as_batch(images, labels))
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((" loss_weight: 0.5 }", " include { phase: TEST } }"), r"no layer of phase TRAIN is a loss.*train_val"),
        (("lr_mult: 1 } param { lr_mult: 2", "lr_mult: 0 } param { lr_mult: 0"), r"no blob with a lr_mult above 0"),
        (("dim: 4 dim: 3", "dim: 4 dim: 7"), r"layer 'in' \(Input\): expected rows of shape \(7,\), got \(3,\)"),
    ],
)
def test_a_net_that_cannot_be_trained(change: tuple[str, str], message: str) -> None:
    with pytest.raises(NetError, match=message):
        objective_of(NET.replace(*change))


def test_a_net_that_measures_nothing() -> None:
    deploy = 'name: "d"\nlayer { name: "in" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }\n'
    deploy += (
        'layer { name: "s" type: "InnerProduct" bottom: "data" top: "s" inner_product_param { num_output: 5 } }'
    )
    with pytest.raises(NetError, match=r"no output of phase TEST is a single number \(outputs: s \(1, 5\)\)"):
        build_test_objective(Recipe.read(Net(prototxt=deploy)), ROWS)


def test_a_label_beyond_the_scores_is_named() -> None:
    images, _ = batch()
    message = r"layer .*: label 5 is out of range; it must be from 0 to .*num_output"
    with pytest.raises(NetError, match=message):
        objective_of().loss(as_batch(images, torch.full((4,), 5)))


def test_torchs_sgd_heeds_the_multipliers() -> None:
    objective = objective_of()
    solver = Solver(learning_rate=0.1, momentum=0.0, weight_decay=0.5)
    inner = build_inner_solver(Recipe.read(Net(prototxt=NET), solver), objective, total_iterations=9)
    weight, bias = objective.train.weights()["score"]
    before = weight.detach().clone(), bias.detach().clone()
    objective.loss(as_batch(*batch())).backward()
    inner.set_rate(0.1)
    inner.optimizer.step()
    torch.testing.assert_close(weight, before[0] - 0.1 * (weight.grad + 0.5 * before[0]))
    torch.testing.assert_close(bias, before[1] - 0.2 * bias.grad)


def test_past_max_iter_the_rate_stays() -> None:
    objective = objective_of()
    solver = Solver(prototxt='base_lr: 1 lr_policy: "poly" power: 1 max_iter: 8\n')
    rate = build_inner_solver(Recipe.read(Net(prototxt=NET), solver), objective, total_iterations=10).rate
    assert [rate(0), rate(4.7), rate(8), rate(9)] == [1, 0.5, 0, 0]


# Devices and scores ------------------------------------------------------------------------------------------

NORMALISED = NET.replace(
    'layer { name: "score" type: "InnerProduct" bottom: "data"',
    'layer { name: "norm" type: "BatchNorm" bottom: "data" top: "norm" }\n'
    'layer { name: "score" type: "InnerProduct" bottom: "norm"',
)


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_a_move_keeps_the_nets_together(kind: str) -> None:
    device, objective, still = torch.device(kind), objective_of(NORMALISED), objective_of(NORMALISED)
    parameters = list(objective.module.parameters())
    images, labels = batch()
    assert objective.to(device) is objective
    assert all(a is b for a, b in zip(objective.module.parameters(), parameters, strict=True))
    for one in (objective, still):
        inner = build_inner_solver(Recipe(net=Net(prototxt=NORMALISED)), one, total_iterations=1)
        where = next(one.module.parameters()).device
        one.loss(as_batch(images.to(where), labels.to(where))).backward()
        inner.optimizer.step()
    for name, blobs in objective.train.weights().items():
        assert {blob.device.type for blob in blobs} == {kind}
        for mine, theirs in zip(blobs, still.train.weights()[name], strict=True):
            torch.testing.assert_close(mine.detach().cpu(), theirs.detach(), rtol=1e-4, atol=1e-6)
    found = objective.measure(as_batch(images.to(device), labels.to(device)))
    expected = still.measure(as_batch(images, labels))
    assert found == {name: pytest.approx(values, rel=1e-4) for name, values in expected.items()}
    torch.testing.assert_close(
        objective.scores({"image": images.to(device)}).cpu(), still.scores({"image": images}), rtol=1e-4, atol=1e-5
    )
    for name, blobs in objective.train.weights().items():
        assert all(a is b for a, b in zip(blobs, objective.test.weights()[name], strict=True)), name


def test_scores_are_what_the_softmax_reads() -> None:
    objective = objective_of()
    images, _ = batch()
    scores = objective.scores({"image": images})
    weight, bias = objective.train.weights()["score"]
    torch.testing.assert_close(scores, images @ weight.T.detach() + bias.detach())
    assert (scores.dtype, scores.shape, scores.requires_grad) == (torch.float32, (4, 5), False)
    measured = objective_of(NET.replace("SoftmaxWithLoss", "HingeLoss").replace('"Softmax"', '"Sigmoid"'))
    assert measured.scores({"image": images}).shape == (4, 5), "what the Accuracy layer reads"


def test_scores_of_a_net_of_the_zoo_are_its_last_classifiers() -> None:
    rows = image_rows((1, 28, 28))
    objective = build_objective(Recipe(net=Net(name="lenet")), rows, batch_size=2, seed=1)
    assert objective.scores({"image": torch.zeros(3, 1, 28, 28)}).shape == (3, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            (('bottom: "score" top: "prob"', 'bottom: "score" top: "score"'), ("SoftmaxWithLoss", "HingeLoss")),
            r"layer 'prob' writes over blob 'score', the scores that layer 'prob' reads.*a top of its own",
        ),
        (
            (("SoftmaxWithLoss", "EuclideanLoss"), ('"Softmax"', '"Sigmoid"'), ('"Accuracy"', '"EuclideanLoss"')),
            r"phase TEST has no layer that reads the score of every class \(SoftmaxWithLoss, Softmax, Accuracy\)",
        ),
    ],
)
def test_a_net_without_scores(change: tuple[tuple[str, str], ...], message: str) -> None:
    text = NET.replace("num_output: 5", "num_output: 1") if "EuclideanLoss" in str(change) else NET
    for old, new in change:
        assert old in text
        text = text.replace(old, new)
    images, _ = batch()
    with pytest.raises(NetError, match=message):
        objective_of(text).scores({"image": images})


def test_a_modules_scores_are_its_logits() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5))
    objective = ModuleObjective(module, ROWS, name="small")
    images, _ = batch()
    assert objective.to(torch.device("cpu")) is objective
    torch.testing.assert_close(objective.scores({"image": images}), module[0](images))
    assert objective.transforms == {}
    with pytest.raises(NetError, match=r"returned \(4, 3, 1\); scores are \[batch, classes\]"):
        ModuleObjective(nn.Unflatten(1, (3, 1)), ROWS, name="odd").scores({"image": images})


# Snapshots ---------------------------------------------------------------------------------------------------


def config_with(kind: str = "SGD", solver: str = "", **settings) -> RunConfig:
    return RunConfig(
        data=Data(source="digits", validation_fraction=0.2),
        net=Net(prototxt=NET, weights=settings.pop("weights", "")),
        run=Run(rounds=3),
        solver=Solver(prototxt=SOLVER % kind + solver, **settings),
        sync=Sync(local_steps=2),
    )


def settings_of(config: RunConfig) -> SolverSettings:
    settings = Recipe.read(config.net, config.solver).settings
    assert settings is not None
    return settings


def writer_of(config: RunConfig, run_dir: Path) -> CaffeSnapshots:
    return make_snapshots(config, settings_of(config), objective_of(), run_dir=run_dir)


def begun(
    config: RunConfig, checkpoints: Checkpoints, objective: CaffeObjective | None = None
) -> tuple[Saved, tuple[str, ...]]:
    return begin(config, settings_of(config), objective or objective_of(), checkpoints)


def trained(config: RunConfig, checkpoints: Checkpoints, round: int) -> CaffeObjective:
    """An objective after a few steps, and its checkpoint."""
    objective = objective_of()
    inner = build_inner_solver(Recipe.read(config.net, config.solver), objective, total_iterations=6)
    for _ in range(2 * round):
        inner.optimizer.zero_grad()
        objective.loss(as_batch(*batch())).backward()
        inner.optimizer.step()
    with checkpoints.writing(RunProgress(round=round, iteration=2 * round)) as draft:
        draft.write(WEIGHTS, dump_weights(objective.module))
        draft.write(INNER, dump_optimizer(inner.optimizer))
    return objective


def written(writer: CaffeSnapshots, round: int, checkpoints: Checkpoints) -> tuple[Path, Path]:
    found = writer.write(2 * round, checkpoints.path(round))
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("form", ["", "snapshot_format: HDF5\n"])
def test_a_checkpoint_goes_to_caffe_and_back(tmp_path: Path, kind: str, form: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    config = config_with(kind, form)
    objective = trained(config, checkpoints, 2)
    writer = writer_of(config, tmp_path)
    model, state = written(writer, 2, checkpoints)
    ending = ".h5" if form else ""
    assert model == tmp_path / "snapshots" / f"small_iter_4.caffemodel{ending}"
    assert read_state(state).current_step == 1, "one step value was passed"

    other = Checkpoints(tmp_path / "other", keep=2)
    saved, missing = begun(config_with(kind, form, snapshot=str(state)), other)
    assert missing == ()
    assert (saved.round, saved.iteration, saved.samples) == (2, 4, 0)
    for name in (WEIGHTS, INNER):
        assert (other.path(2) / name).read_bytes() == (checkpoints.path(2) / name).read_bytes(), name
    fresh = objective_of()
    weights, missing = begun(config_with(weights=str(model)), Checkpoints(tmp_path / "third", keep=2), fresh)
    assert (weights.round, missing) == (0, ())
    assert dump_weights(fresh.module) == dump_weights(objective.module)


def test_layers_that_the_weights_lack_are_told(tmp_path: Path) -> None:
    model, other = tmp_path / "other.caffemodel", objective_of()
    train = other.train
    train.save_weights(model)
    net = NetParameter.FromString(model.read_bytes())
    kept = [layer for layer in net.layer if not layer.blobs]
    lacking = tuple(layer.name for layer in net.layer if layer.blobs)
    del net.layer[:]
    net.layer.extend(kept)
    model.write_bytes(net.SerializeToString())
    saved, missing = begun(config_with(weights=str(model)), Checkpoints(tmp_path / "x", keep=2))
    assert (saved.round, missing) == (0, lacking)
    assert lacking


def test_a_snapshot_of_any_iteration_is_gone_on_from(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    config = config_with()
    trained(config, checkpoints, 3)
    writer = writer_of(config, tmp_path)
    _, state = written(writer, 3, checkpoints)
    later = replace(config_with(snapshot=str(state)), sync=Sync(local_steps=4))
    assert starting_point(later, settings_of(later)) == RunProgress(round=2, iteration=6)
    with pytest.raises(CheckpointError, match="none"):
        starting_point(config_with(snapshot="/none.solverstate"), settings_of(config))


def test_a_snapshot_of_another_solver_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    config = config_with("Adam")
    trained(config, checkpoints, 1)
    writer = writer_of(config, tmp_path)
    _, state = written(writer, 1, checkpoints)
    with pytest.raises(CheckpointError, match=r"the history has 4 blobs; type SGD over 2 parameters has 2"):
        begun(config_with("SGD", snapshot=str(state)), Checkpoints(tmp_path / "x", keep=2))


@pytest.mark.parametrize(
    ("solver", "last", "due"),
    [
        ("", True, True),
        ("snapshot_after_train: false\n", True, False),
        ("snapshot_after_train: false\n", False, True),
    ],
)
def test_the_last_snapshot_is_left_out_where_the_solver_says_so(
    tmp_path: Path, solver: str, last: bool, due: bool
) -> None:
    writer = writer_of(config_with(solver=solver), tmp_path)
    assert writer.due(3, 6, last=last) == due


def test_a_prefix_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = config_with(solver=f'snapshot_prefix: "{tmp_path}/file/x"\n')
    with pytest.raises(CheckpointError, match=r"snapshot_prefix is .*cannot be made: .*correct it in the solver"):
        writer_of(config, tmp_path)


def test_a_checkpoint_that_is_not_there_leaves_no_snapshot(tmp_path: Path) -> None:
    writer = writer_of(config_with(), tmp_path)
    with pytest.raises(CheckpointError, match=r"no snapshot of .*round-000001 can be made"):
        writer.write(1, tmp_path / "checkpoints" / "round-000001")
    assert list((tmp_path / "snapshots").iterdir()) == []
