"""One worker that synchronises after every step is Caffe's solver: the same losses, weights and histories."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from image_rows import NAMES, as_batch, image_rows
from sparknet.caffe.solver.caffe_solver import CaffeSolver
from sparknet.caffe.solver.policies import RateSchedule
from sparknet.caffe.solver.solverstate import SavedState, write_state
from sparknet.config import Data, Net, Run, RunConfig, Solver, Sync
from sparknet.data.loading.loader import Batch
from sparknet.data.loading.sampling_order import Cursor
from sparknet.training.caffe_runs.open_run import open_run
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.optimiser import build_inner_solver
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.sync.flat_weights import FlatWeights
from sparknet.training.sync.synchronise import Synchroniser
from sparknet.training.worker.replica import Replica

NET = """
name: "small"
layer { name: "rows" type: "Data" top: "image" top: "class" data_param { source: "x" batch_size: 6 } }
layer { name: "conv" type: "Convolution" bottom: "image" top: "conv"
  param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "norm" }
layer { name: "relu" type: "ReLU" bottom: "norm" top: "norm" }
layer { name: "frozen" type: "InnerProduct" bottom: "norm" top: "frozen" param { lr_mult: 0 } param { lr_mult: 0 }
  inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
layer { name: "score" type: "InnerProduct" bottom: "frozen" top: "score"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "score" bottom: "class" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "class" top: "loss" }
"""
SOLVERS = {
    "step": 'base_lr: 0.1 lr_policy: "step" gamma: 0.5 stepsize: 4 momentum: 0.9 weight_decay: 0.01 max_iter: 12\n',
    "multistep": 'base_lr: 0.1 lr_policy: "multistep" gamma: 0.5 stepvalue: [3, 4] momentum: 0.9 max_iter: 12\n',
    "iter_size": 'base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 iter_size: 3 clip_gradients: 0.5 max_iter: 12\n',
    "poly": 'base_lr: 0.1 lr_policy: "poly" power: 2 momentum: 0.9 max_iter: 12 type: "Nesterov"\n',
    "adam": 'base_lr: 0.01 lr_policy: "inv" gamma: 0.1 power: 0.75 momentum: 0.9 max_iter: 12 type: "Adam"\n',
}
ROWS = image_rows((2, 5, 5), dtype="float32", classes=3)
GOES_ON = threading.Event()


class Alone:
    """A group of one."""

    def sum(self, buffer):
        pass

    max = broadcast = sum


def batches(count):
    random = np.random.default_rng(5)
    for number in range(count):
        images = random.standard_normal((6, 2, 5, 5)).astype(np.float32)
        labels = random.integers(0, 3, 6)
        yield Batch(columns={"image": images, "label": labels}, cursor=Cursor(epoch=0, position=6 * number + 6))


@pytest.mark.parametrize("name", SOLVERS)
def test_one_worker_is_caffes_solver(name):
    steps, per_step = 12, 3 if name == "iter_size" else 1
    config = RunConfig(
        data=Data(source="digits", validation_fraction=0.2),
        net=Net(prototxt=NET),
        run=Run(rounds=steps),
        solver=Solver(prototxt=SOLVERS[name], batch_size=6),
        sync=Sync(local_steps=1),
    )
    recipe = Recipe.read(config.net, config.solver)
    objective = build_objective(recipe, ROWS, batch_size=6, seed=3)
    replica = Replica(objective, build_inner_solver(recipe, objective, total_iterations=steps), config, slot=0)
    sync = Synchroniser(FlatWeights(objective.module), config.sync.outer)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        text = f"net_param {{ {NET} }}\n{SOLVERS[name]}"
        solver = CaffeSolver.from_prototxt(text, input_shapes={"image": (6, 2, 5, 5)})

    source = batches(steps * per_step)
    reports = []
    for round in range(steps):
        reports.append(
            replica.take_steps(source, 1, round=round, iterations=range(round, round + 1), ended=GOES_ON)
        )
        sync.exchange(Alone(), 1.0)
        sync.apply()
    expected = solver.step(
        {"image": b.columns["image"], "class": b.columns["label"]} for b in batches(steps * per_step)
    )

    np.testing.assert_allclose([report.loss for report in reports], expected, rtol=1e-6)
    assert reports[-1].learning_rate == solver.last_rate
    assert {report.samples for report in reports} == {6 * per_step}
    for layer, blobs in solver.net.weights().items():
        for mine, theirs in zip(objective.train.weights()[layer], blobs, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    tensors = [blob.tensor for blob in objective.learnable]
    for mine, theirs in zip(replica.optimizer.histories(tensors), solver.history(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("begun", [(0, 0), (4, 1), (4, 0), (5, 9)])
def test_a_snapshot_says_how_many_steps_the_rate_has_passed(name: str, begun: tuple[int, int], tmp_path: Path):
    """The rates are those of Caffe's solver that was given the same state, whichever policy wrote it."""
    write_state(
        SavedState(iteration=begun[0], current_step=begun[1], learned_net="", history=()),
        tmp_path / "a.solverstate",
    )
    config = RunConfig(
        data=Data(source="digits", validation_fraction=0.2),
        net=Net(prototxt=NET),
        run=Run(rounds=12),
        solver=Solver(prototxt=SOLVERS[name], snapshot=str(tmp_path / "a.solverstate")),
        sync=Sync(local_steps=1),
    )
    opened = open_run(config).config
    (tmp_path / "a.solverstate").unlink()
    again = open_run(opened).config
    assert again.solver.snapshot_step == begun
    recipe = Recipe.read(again.net, again.solver)
    objective = build_objective(recipe, ROWS, batch_size=6, seed=3)
    rate = build_inner_solver(recipe, objective, total_iterations=12).rate
    assert recipe.settings is not None
    schedule = RateSchedule(recipe.settings.policy, begun[1])
    rest = range(begun[0], 12)
    assert [rate(iteration) for iteration in rest] == [schedule.advance(iteration) for iteration in rest]


def test_the_test_net_follows_the_trained_weights():
    """Also where the weights have become views of the flat buffer: the tensors are the same objects."""
    objective = build_objective(Recipe.read(Net(prototxt=NET)), ROWS, batch_size=6, seed=3)
    weights = FlatWeights(objective.module)
    batch = next(batches(1))
    images, labels = (torch.from_numpy(batch.columns[name]) for name in NAMES)
    before = objective.measure(as_batch(images, labels))
    with torch.no_grad():
        weights.local.mul_(3)
        weights.scatter()
    after = objective.measure(as_batch(images, labels))
    assert before["loss"] != after["loss"]
    train, test = objective.train.weights(), objective.test.weights()
    assert all(a is b for layer in train for a, b in zip(train[layer], test[layer], strict=True))
