"""From batches to the tensors of a step: unchanged on the CPU, stored bytes where the weights are elsewhere."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from formats import make_table
from sparknet.config import Data, Net, Run, RunConfig, Solver
from sparknet.data.loading.loader import Batch, Loader
from sparknet.data.loading.sampling_order import Cursor, Order
from sparknet.data.loading.transform import Normalise
from sparknet.training.objectives.objective import ModuleObjective
from sparknet.training.objectives.optimiser import build_inner_solver
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.worker.device_feed import DeviceFeed
from sparknet.training.worker.evaluate import Cuts, evaluate_part
from sparknet.training.worker.replica import Replica

CPU, META = torch.device("cpu"), torch.device("meta")
NORMALISE = Normalise(
    mean=np.random.default_rng(0).random((3, 9, 9), np.float32), scale=0.1, crop=6, cut="random", mirror=True
)
CONFIG = RunConfig(
    data=Data(source="digits", validation_fraction=0.2),
    net=Net(name="small"),
    run=Run(rounds=2),
    solver=Solver(learning_rate=0.05),
)


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 10))


def objective(device="cpu"):
    return ModuleObjective(net().to(device), name="small")


def loader(table, feed, *, seed=1):
    return Loader(
        table,
        Order(seed, table.shard_rows, 1, 0),
        batch_size=8,
        cursor=Cursor(),
        image="image",
        label="label",
        preprocess=feed.for_loaders,
    )


@pytest.fixture
def table(tmp_path):
    return make_table(tmp_path, [20, 13], shape=(3, 9, 9))[0]


def test_on_the_cpu_loaders_preprocess_and_nothing_is_copied(table):
    feed = DeviceFeed.of(objective(), NORMALISE)
    assert feed.for_loaders is NORMALISE
    with loader(table, feed) as source:
        batch = next(source)
    images, labels = feed.batch(batch)
    assert images.data_ptr() == batch.images.__array_interface__["data"][0]
    assert labels.data_ptr() == batch.labels.__array_interface__["data"][0]


def test_elsewhere_loaders_deliver_stored_rows():
    feed = DeviceFeed.of(objective("meta"), NORMALISE)
    assert (feed.for_loaders, feed.device) == (None, META)
    stored = Batch(
        images=np.zeros((8, 3, 9, 9), np.uint8),
        labels=np.zeros(8, np.int64),
        cursor=Cursor(),
        draws=np.zeros((8, 4), np.uint32),
    )
    images, labels = feed.batch(stored)
    assert (images.device, images.dtype, images.shape) == (META, torch.float32, (8, 3, 6, 6))
    assert (labels.device, labels.dtype) == (META, torch.int64)


def test_a_module_without_parameters_is_on_the_cpu():
    assert DeviceFeed.of(ModuleObjective(nn.Flatten(), name="none"), None).device == CPU


class ElsewhereOnCpu(DeviceFeed):
    """Does on the CPU what is done where the weights are elsewhere."""

    def __init__(self, normalise):
        super().__init__(normalise, META)
        self.device = CPU
        self._normalise = type(self._normalise)(normalise, CPU)


def trained(table, feed, device="cpu"):
    judged = objective(device)
    solver = build_inner_solver(Recipe(net=CONFIG.net, solver=CONFIG.solver), judged, total_iterations=20)
    replica = Replica(judged, solver, CONFIG, slot=0, feed=feed)
    with loader(table, feed) as source:
        report = replica.take_steps(source, 6, round=0, ended=threading.Event())
    return report, [parameter.detach().cpu() for parameter in judged.module.parameters()]


def test_training_is_the_same_wherever_rows_are_preprocessed(table):
    here, weights = trained(table, DeviceFeed(NORMALISE, CPU))
    there, others = trained(table, ElsewhereOnCpu(NORMALISE))
    assert (here.loss, here.samples, here.cursor) == (there.loss, there.samples, there.cursor)
    for weight, other in zip(weights, others, strict=True):
        assert torch.equal(weight, other)


def test_stored_rows_that_came_by_another_way(table):
    part = table.slice(0, 13)
    draws = np.random.default_rng(0).integers(0, 2**32, (13, 4), dtype=np.uint32)
    first, labels = DeviceFeed(NORMALISE, CPU).rows(part["image"], part["label"], draws)
    second, _ = ElsewhereOnCpu(NORMALISE).rows(part["image"], part["label"], draws)
    assert torch.equal(first, second)
    assert labels.tolist() == part["label"].tolist()
    np.testing.assert_array_equal(first.numpy(), NORMALISE(part["image"], draws))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_training_and_evaluation_on_a_gpu(table):
    here, weights = trained(table, DeviceFeed(NORMALISE, CPU))
    there, others = trained(table, DeviceFeed(NORMALISE, torch.device("cuda")), "cuda")
    assert there.loss == pytest.approx(here.loss, rel=1e-4)
    for weight, other in zip(weights, others, strict=True):
        torch.testing.assert_close(other, weight, rtol=1e-3, atol=1e-5)
    reports = []
    for device in ("cpu", "cuda"):
        judged = objective(device)
        reports.append(
            evaluate_part(
                judged,
                table,
                NORMALISE,
                cuts=Cuts.of(judged, 33),
                part=(0, 1),
                columns=("image", "label"),
            )
        )
    assert reports[1].sums["loss"] == pytest.approx(reports[0].sums["loss"], rel=1e-4)
