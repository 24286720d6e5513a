"""From batches to the tensors of a step: unchanged on the CPU, stored bytes where the weights are elsewhere."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from formats import make_table
from image_rows import NAMES, image_rows
from sparknet.config import Data, Net, Run, RunConfig, Solver
from sparknet.data.loading.loader import Batch, Loader
from sparknet.data.loading.sampling_order import Cursor, Order
from sparknet.data.loading.transform import Normalise
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.objectives.optimiser import build_inner_solver
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.worker.device_feed import DeviceFeed
from sparknet.training.worker.device_transform import DeviceNormalise
from sparknet.training.worker.evaluate import Cuts, evaluate_part
from sparknet.training.worker.replica import Replica
from sparknet.training.worker.staging import HostStaging

CPU, META = torch.device("cpu"), torch.device("meta")
NORMALISE = Normalise(
    mean=np.random.default_rng(0).random((3, 9, 9), np.float32), scale=0.1, crop=6, cut="random", mirror=True
)
CHAIN = {"image": NORMALISE}
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
    return ModuleObjective(net().to(device), image_rows((3, 6, 6)), name="small")


def loader(table, feed, *, seed=1):
    return Loader(
        table,
        Order(seed, table.shard_rows, 1, 0),
        batch_size=8,
        cursor=Cursor(),
        preprocess=feed.for_loaders,
    )


@pytest.fixture
def table(tmp_path):
    return make_table(tmp_path, [20, 13], shape=(3, 9, 9))[0]


def test_on_the_cpu_loaders_preprocess_and_nothing_is_copied(table):
    feed = DeviceFeed.of(objective(), CHAIN)
    assert feed.for_loaders is CHAIN
    with loader(table, feed) as source:
        batch = next(source)
    for name, tensor in feed.batch(batch).items():
        assert tensor.data_ptr() == batch.columns[name].__array_interface__["data"][0], name


def test_elsewhere_loaders_deliver_stored_rows():
    feed = DeviceFeed.of(objective("meta"), CHAIN)
    assert (feed.for_loaders, feed.device) == (None, META)
    stored = Batch(
        columns={"image": np.zeros((8, 3, 9, 9), np.uint8), "label": np.zeros(8, np.int64)},
        cursor=Cursor(),
        draws=np.zeros((8, 4), np.uint32),
    )
    images, labels = (feed.batch(stored)[name] for name in NAMES)
    assert (images.device, images.dtype, images.shape) == (META, torch.float32, (8, 3, 6, 6))
    assert (labels.device, labels.dtype) == (META, torch.int64)


def test_a_module_without_parameters_is_on_the_cpu():
    assert DeviceFeed.of(ModuleObjective(nn.Flatten(), image_rows(), name="none"), None).device == CPU


class ElsewhereOnCpu(DeviceFeed):
    """Does on the CPU what is done where the weights are elsewhere."""

    def __init__(self, chain):
        super().__init__(chain, META)
        self.device = CPU
        self._staging = HostStaging(CPU)
        self._normalise = {name: DeviceNormalise(normalise, CPU) for name, normalise in chain.items()}


def trained(table, feed, device="cpu"):
    judged = objective(device)
    solver = build_inner_solver(Recipe(net=CONFIG.net, solver=CONFIG.solver), judged, total_iterations=20)
    replica = Replica(judged, solver, CONFIG, slot=0, feed=feed)
    with loader(table, feed) as source:
        report = replica.take_steps(source, 6, round=0, iterations=range(6), ended=threading.Event())
    return report, [parameter.detach().cpu() for parameter in judged.module.parameters()]


def test_training_is_the_same_wherever_rows_are_preprocessed(table):
    here, weights = trained(table, DeviceFeed(CHAIN, CPU))
    there, others = trained(table, ElsewhereOnCpu(CHAIN))
    assert (here.loss, here.samples, here.cursor) == (there.loss, there.samples, there.cursor)
    for weight, other in zip(weights, others, strict=True):
        assert torch.equal(weight, other)


def test_stored_rows_that_came_by_another_way(table):
    part = table.slice(0, 13)
    draws = np.random.default_rng(0).integers(0, 2**32, (13, 4), dtype=np.uint32)
    found = DeviceFeed(CHAIN, CPU).rows(part, draws)
    first, labels = found["image"], found["label"]
    second = ElsewhereOnCpu(CHAIN).rows(part, draws)["image"]
    assert torch.equal(first, second)
    assert labels.tolist() == part["label"].tolist()
    np.testing.assert_array_equal(first.numpy(), NORMALISE(part["image"], draws))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_training_and_evaluation_on_a_gpu(table):
    here, weights = trained(table, DeviceFeed(CHAIN, CPU))
    there, others = trained(table, DeviceFeed(CHAIN, torch.device("cuda")), "cuda")
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
                CHAIN,
                cuts=Cuts.of(judged, 33),
                part=(0, 1),
            )
        )
    assert reports[1].sums["loss"][0] == pytest.approx(reports[0].sums["loss"][0], rel=1e-4)
