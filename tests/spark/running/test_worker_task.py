"""What a worker starts is ended with it, however it ends: Spark uses its process again for other tasks."""

import functools
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from a_manifest import MANIFEST
from encoded import cells_of, encoded_columns, png
from formats import random_rows
from sparknet.config import Cluster, Data, Net, Run, RunConfig, Solver
from sparknet.data.loading.sampling_order import Order
from sparknet.data.loading.shard_order import ShardOrder
from sparknet.data.loading.transform import Normalise
from sparknet.data.shards.manifest import StoredColumn
from sparknet.data.shards.prepared import PreparedData
from sparknet.data.shards.shard_table import Shard, ShardTable
from sparknet.data.shards.shard_writer import ShardWriter
from sparknet.errors import ClusterError, NetError
from sparknet.spark.jobs.ports import DriverHost
from sparknet.spark.running.driver_client import DriverAddress
from sparknet.spark.running.driver_service import DriverService
from sparknet.spark.running.worker_task import WorkerPlan, train_as
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.messages import Register
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import Rules
from sparknet.training.objectives.preprocessing import Preprocessing
from sparknet.training.run_files.checkpoint import Checkpoints

PLAIN = Normalise(mean=None, scale=1.0)
SHAPE = (1, 8, 8)
NEVER = 10**6


@pytest.fixture
def started(monkeypatch):
    """The names of all threads that are started from now on."""
    names, start = [], threading.Thread.start

    def noted(thread):
        names.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    return names


def prepare(directory, *, torn=False):
    """A store of encoded images, which several threads decode; `torn` damages the last one."""
    images, _ = random_rows(16, SHAPE, seed=1)
    labels = np.arange(16) % 3
    files = [png(image) for image in images]
    if torn:
        files[-1] = b"no image"
    columns = encoded_columns(SHAPE)
    writer = ShardWriter(directory, prefix="rows", columns=columns, shard_bytes=1 << 20)
    writer.append({"image": images, "label": labels}, {"image": cells_of(files)})
    shards = tuple(Shard(path=done.name, rows=done.statistics.rows) for done in writer.close())
    image, label = columns
    counts, ones = tuple(np.bincount(labels).tolist()), (1.0,)
    stored = (
        StoredColumn(column=image, channel_mean=ones, channel_std=ones, mean_image="mean-0.npy"),
        StoredColumn(column=replace(label, classes=len(counts)), counts=counts),
    )
    manifest = replace(MANIFEST, columns=stored, train=shards, validation=shards)
    manifest.save(directory)
    return manifest


class Stage:
    """A driver for one worker, and that worker's plan."""

    def __init__(self, directory, manifest, *, rounds):
        rules = Rules(slots=1, rounds=rounds, plan=RoundPlan(local_steps=1, checkpoint_every=1), evaluation_parts=1)
        self.coordinator = Coordinator(rules, now=time.monotonic())
        checkpoints = Checkpoints(directory, keep=2)
        self.service = DriverService(self.coordinator, checkpoints, at=DriverHost(host="127.0.0.1"), token="t")
        config = RunConfig(
            data=Data(source="digits", validation_fraction=0.2, threads=2),
            net=Net(name="digits_cnn"),
            run=Run(rounds=rounds, workers=1),
            solver=Solver(batch_size=8),
            cluster=Cluster(heartbeat_timeout_seconds=0.5),
        )
        self.plan = WorkerPlan(
            config=config,
            driver=DriverAddress(uri=self.service.address, token="t"),
            data=PreparedData.of(directory, manifest),
            iterations=rounds,
            preprocessing=Preprocessing(train={"image": PLAIN}, test={"image": PLAIN}),
        )

    def train(self):
        train_as(self.plan, Register(slot=0, attempt=0, host="here", pid=1))


@pytest.fixture
def stage_for(tmp_path):
    stages = []

    def make(*, rounds, torn=False):
        stages.append(Stage(tmp_path, prepare(tmp_path, torn=torn), rounds=rounds))
        return stages[-1]

    yield make
    for stage in stages:
        stage.service.close()


def own_threads():
    """Python's threads; those of the service's calls belong to its server, and each has a dummy here."""
    return {thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}


def check_ended(before, started):
    assert any(name.startswith("sparknet-decode") for name in started), "several threads have decoded"
    assert own_threads() <= before


def test_after_a_finished_run(stage_for, started):
    stage = stage_for(rounds=2)
    before = own_threads()
    stage.train()
    assert stage.coordinator.status == "finished"
    check_ended(before, started)


@pytest.mark.parametrize("by_shard", [True, False])
def test_rows_come_in_the_order_that_the_data_are_dealt_in(stage_for, monkeypatch, by_shard):
    stage, taken = stage_for(rounds=1), []
    data = stage.plan.data
    stage.plan = replace(stage.plan, data=replace(data, by_shard=by_shard))
    take = ShardTable.take

    def noted(table, rows, draws=None):
        taken.append(rows)
        return take(table, rows, draws)

    monkeypatch.setattr(ShardTable, "take", noted)
    stage.train()
    assert stage.coordinator.status == "finished"
    shard_rows = [shard.rows for shard in data.manifests[0].train]
    wanted, other = (
        kind(stage.plan.config.run.seed, shard_rows, 1, 0).rows(0, 0, 8)
        for kind in ((ShardOrder, Order) if by_shard else (Order, ShardOrder))
    )
    assert taken[0].tolist() == wanted.tolist() != other.tolist()


def test_after_data_at_fault_which_end_the_run_quietly(stage_for, started):
    stage = stage_for(rounds=2, torn=True)
    before = own_threads()
    stage.train()
    assert stage.coordinator.status == "failed"
    assert "is damaged now" in stage.coordinator.culprit.cause
    check_ended(before, started)


def test_after_the_driver_is_gone_which_spark_must_hear_of(stage_for, started):
    stage = stage_for(rounds=NEVER)
    before = own_threads()

    def leave():
        give_up = time.monotonic() + 60
        while stage.coordinator.round < 2 and time.monotonic() < give_up:
            time.sleep(0.01)
        stage.service.close()

    gone = threading.Thread(target=leave)
    gone.start()
    with pytest.raises(ClusterError, match=r"worker 0 lost the driver while"):
        stage.train()
    gone.join()
    assert stage.coordinator.round >= 2
    check_ended(before, started)


def test_a_cause_that_no_driver_hears_is_raised_itself(stage_for):
    """Not the failed call: whoever reads the task's log must see what was wrong."""
    stage = stage_for(rounds=2)
    before = own_threads()
    stage.service.close()
    stage.plan = replace(stage.plan, config=replace(stage.plan.config, net=Net(name="nowhere")))
    with pytest.raises(NetError, match="not in the zoo") as raised:
        stage.train()
    assert raised.value.__notes__, "that nobody was told stands beside it"
    assert own_threads() <= before


KEPT_AND_GIVEN_BACK = """
import torch
from sparknet.spark.running.worker_task import give_back_memory, keep_freed_memory

def megabytes():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

keep_freed_memory()
before = megabytes()
tensors = [torch.ones(1 << 20) for _ in range(50)]
del tensors
kept = megabytes() - before
give_back_memory()
print(kept, megabytes() - before)
"""


def test_freed_memory_is_kept_until_it_is_given_back():
    """In a process of its own, since malloc is told for good."""
    done = subprocess.run(
        [sys.executable, "-c", KEPT_AND_GIVEN_BACK], capture_output=True, text=True, check=True, timeout=120
    )
    kept, left = map(int, done.stdout.split())
    assert kept > 150
    assert left < 50


def notes_of(stage):
    told = []
    while not stage.service.events.empty():
        told.append(stage.service.events.get())
    return [record for record in told if record["event"] == "note"]


@pytest.mark.parametrize("works", [True, False])
def test_a_net_that_cannot_be_compiled_trains_as_it_is_and_a_line_says_so(stage_for, monkeypatch, works):
    passes = []

    def backend(graph, inputs):
        if not works:
            raise RuntimeError("no compiler here")
        return lambda *given: passes.append(1) or graph.forward(*given)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    stage = stage_for(rounds=2)
    compiled = replace(stage.plan.config.net, compile=True)
    stage.plan = replace(stage.plan, config=replace(stage.plan.config, net=compiled))
    stage.train()
    assert stage.coordinator.status == "finished"
    # The trial, and one step in each round.
    assert len(passes) == (3 if works else 0)
    notes = notes_of(stage)
    assert len(notes) == (0 if works else 1)
    for note in notes:
        assert note["level"] == "warning"
        assert "worker 0 on here: net.compile: it runs as it is, since torch.compile failed:" in note["message"]
        assert "no compiler here" in note["message"]
