"""A run without Spark: workers in processes of their own, against a real coordinator and driver service.

For machines that have torch and no Java. What a task of Spark's would do, `train_as`, a process does; what Spark
would do about one that dies, the test does.
"""

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparknet.config import Cluster, Data, Net, Run, RunConfig, Solver, Sync
from sparknet.data.loading.transform import Normalise
from sparknet.data.rows.columns import Column
from sparknet.data.shards.manifest import FORMAT_VERSION, Manifest, StoredColumn
from sparknet.data.shards.prepared import PreparedData
from sparknet.data.shards.shard_table import Shard
from sparknet.data.shards.shard_writer import ShardWriter
from sparknet.spark.devices.binding import Bound
from sparknet.spark.jobs.ports import DriverHost
from sparknet.spark.running.driver_client import DriverAddress
from sparknet.spark.running.driver_service import DriverService
from sparknet.spark.running.worker_task import WorkerPlan, train_as
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.messages import Register
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import Rules, RunProgress
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.preprocessing import Preprocessing
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.checkpoint import Checkpoints
from sparknet.training.worker.evaluate import Evaluation

PATIENCE_SECONDS = 240.0
TOKEN = "a token of this test"
_PROCESSES = multiprocessing.get_context("spawn")  # a fork would inherit a driver service's threads, and CUDA


def store(directory: Path, images: np.ndarray, labels: np.ndarray, *, classes: int, held: int) -> PreparedData:
    """Shards of images uint8 [n, channels, height, width] and their classes; the last `held` rows are held out."""
    directory.mkdir(parents=True)
    columns = (
        Column(name="image", dtype="uint8", shape=images.shape[1:]),
        Column(name="label", dtype="int64", shape=(), classes=classes),
    )
    cut = len(images) - held
    shards: list[tuple[Shard, ...]] = []
    for prefix, part in (("train", slice(0, cut)), ("validation", slice(cut, None))):
        writer = ShardWriter(directory, prefix=prefix, columns=columns, shard_bytes=256 << 20)
        writer.append({"image": images[part], "label": labels[part]})
        shards.append(tuple(Shard(path=done.name, rows=done.statistics.rows) for done in writer.close()))
    ones = (1.0,) * images.shape[1]
    manifest = Manifest(
        version=FORMAT_VERSION,
        columns=(
            StoredColumn(column=columns[0], channel_mean=ones, channel_std=ones, mean_image="none"),
            StoredColumn(column=columns[1], counts=tuple(np.bincount(labels[:cut], minlength=classes).tolist())),
        ),
        inputs=("image",),
        targets=("label",),
        train=shards[0],
        validation=shards[1],
        source={"source": "arrays"},
        fingerprint="0" * 64,
        seed=0,
    )
    manifest.save(directory)
    return PreparedData.of(directory, manifest)


def config_of(directory: Path, net: Net, **sections: Mapping[str, Any]) -> RunConfig:
    """A run of two workers; settings by section."""
    of: dict[str, dict[str, Any]] = {name: dict(values) for name, values in sections.items()}
    return RunConfig(
        data=Data(source="digits", validation_fraction=0.5, store=str(directory)),
        net=net,
        run=Run(**({"rounds": 8, "workers": 2, "eval_every": 0, "checkpoint_every": 4} | of.get("run", {}))),
        solver=Solver(**({"batch_size": 16, "learning_rate": 0.05} | of.get("solver", {}))),
        sync=Sync(**({"local_steps": 4} | of.get("sync", {}))),
        # A process takes seconds to import torch, and a test machine may be slow.
        cluster=Cluster(**({"heartbeat_timeout_seconds": 20.0, "hang_seconds": 200.0} | of.get("cluster", {}))),
    )


class BareRun:
    """One start of a run.

    Args:
        directory: for its checkpoints, which a later start goes on from.
        config: the run.
        data: its rows.
        device: of every worker.
        crop: side of the square that training images are cut to, with a mirror; 0: they stay as they are.

    Attributes:
        events: of the coordinator, as they come.
        coordinator: look at it when the run has ended.
    """

    def __init__(
        self, directory: Path, config: RunConfig, data: PreparedData, *, device: str, crop: int = 0
    ) -> None:
        self._config, self._device = config, device
        self._checkpoints = Checkpoints(directory / "checkpoints", config.run.keep_checkpoints)
        saved, _ = self._checkpoints.newest_good()
        rounds = config.run.rounds or 0
        objective = build_objective(
            Recipe.read(config.net, config.solver, objective=config.objective),
            data.rows,
            batch_size=config.solver.batch_size,
            seed=config.run.seed,
            data=config.data,
        )
        evaluation = Evaluation.of(objective, data, config)
        rules = Rules(
            slots=config.run.workers,
            rounds=rounds,
            plan=RoundPlan.of(config),
            evaluation_parts=evaluation.parts,
            validation_rows=data.validation_rows,
            heartbeat_timeout_seconds=config.cluster.heartbeat_timeout_seconds,
            hang_seconds=config.cluster.hang_seconds,
            grace_seconds=config.cluster.grace_seconds,
            start_seconds=PATIENCE_SECONDS,
        )
        start = saved.progress if saved else RunProgress()
        self.coordinator = Coordinator(
            rules,
            now=time.monotonic(),
            start=start,
            checkpoint=saved.round if saved else None,
            conclude=evaluation.conclude,
        )
        plain = Normalise(mean=np.full((1, 1, 1), 100.0, np.float32), scale=0.01, crop=crop)
        trained = replace(plain, cut="random", mirror=True) if crop else plain
        self._service = DriverService(
            self.coordinator, self._checkpoints, at=DriverHost(host="127.0.0.1"), token=TOKEN
        )
        self._plan = WorkerPlan(
            config=config,
            driver=DriverAddress(uri=self._service.address, token=TOKEN),
            data=data,
            iterations=rounds * config.sync.local_steps,
            preprocessing=Preprocessing(train={"image": trained}, test={"image": plain}),
        )
        self.events: list[dict[str, Any]] = []
        self._attempts = 0
        self._workers: dict[int, BaseProcess] = {}

    def begin(self, slot: int) -> None:
        """Start the worker of a slot, a new attempt of it if there was one."""
        who = Register(slot=slot, attempt=self._attempts, host="127.0.0.1")
        self._attempts += 1
        process = _PROCESSES.Process(target=_work, args=(self._plan, who, self._device), daemon=True)
        process.start()
        self._workers[slot] = process

    def kill(self, slot: int) -> None:
        """As a lost executor: no word to anybody."""
        self._workers[slot].kill()
        self._workers[slot].join(PATIENCE_SECONDS)

    def until(self, kind: str, **fields: object) -> dict[str, Any]:
        """Wait for an event of this kind with these values."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < give_up:
            assert self.coordinator.status != "failed", self.coordinator.reason
            try:
                event = self._service.events.get(timeout=0.2)
            except queue.Empty:
                continue
            self.events.append(event)
            if event["event"] == kind and all(event.get(key) == value for key, value in fields.items()):
                return event
        raise AssertionError(f"no {kind} with {fields} in {PATIENCE_SECONDS} s: {self.events[-5:]}")

    def finish(self) -> None:
        """Wait for the end of the run."""
        self._join()
        assert self.coordinator.status == "finished", self.coordinator.reason

    def stop(self) -> None:
        """End the run here."""
        self._service.locked(lambda coordinator: coordinator.stop("the test has seen enough"))
        self._join()

    def _join(self) -> None:
        for process in self._workers.values():
            process.join(PATIENCE_SECONDS)
            assert process.exitcode == 0, (process.exitcode, self.coordinator.reason)
        while not self._service.events.empty():
            self.events.append(self._service.events.get())

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind."""
        return [event for event in self.events if event["event"] == kind]

    def weights(self) -> bytes:
        """Of the last checkpoint, as its file has them."""
        saved, _ = self._checkpoints.newest_good()
        assert saved is not None
        return (self._checkpoints.path(saved.round) / "weights.safetensors").read_bytes()

    def __enter__(self) -> "BareRun":
        for slot in range(self._config.run.workers):
            self.begin(slot)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._workers.values():
            process.kill()
            process.join(PATIENCE_SECONDS)
        self._service.close()


@contextmanager
def _dying_with(parent: int):
    """A test that is killed leaves no workers behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    yield


def _work(plan: WorkerPlan, who: Register, device: str) -> None:
    with _dying_with(os.getppid()):
        # The same sums in the same order, so that runs can be held against each other bit for bit.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        train_as(plan, replace(who, pid=os.getpid()), bound=Bound(device=torch.device(device), shown=device))
