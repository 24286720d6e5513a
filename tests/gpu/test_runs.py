"""Whole runs on a device, without Spark: agreement, death, resumption, half precision.

On a machine without a GPU they run on its CPU, where all but the device is the same.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from bare_run import BareRun, config_of, store
from sparknet.config import Net
from sparknet.data.shards.prepared import PreparedData

CLASSES, ROWS, HELD = 4, 400, 80
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"))
SLOW = pytest.mark.slow
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])
MATRICES, CONVOLUTIONS = Net(name="gpu_nets:matrices"), Net(name="gpu_nets:convolutions", channels_last=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Noisy images of four kinds."""
    random = np.random.default_rng(0)
    kinds = random.integers(0, 256, (CLASSES, 3, 10, 10))
    labels = random.integers(0, CLASSES, ROWS)
    images = np.clip(kinds[labels] + random.normal(0, 40, (ROWS, 3, 10, 10)), 0, 255).astype(np.uint8)
    return store(tmp_path_factory.mktemp("store") / "rows", images, labels, classes=CLASSES, held=HELD)


def whole(directory: Path, data: PreparedData, net: Net, device: str, *, crop: int = 0, **sections) -> BareRun:
    """A run from its beginning, or from its last checkpoint, to its end."""
    with BareRun(directory, config_of(directory, net, **sections), data, device=device, crop=crop) as run:
        run.finish()
    return run


@DEVICES
def test_two_workers_on_one_device_learn_and_agree(tmp_path: Path, data: PreparedData, device: str) -> None:
    # Other weights on one of them would fail the run: each round holds their hashes against each other.
    run = whole(tmp_path, data, CONVOLUTIONS, device, crop=8, run={"rounds": 12})
    assert [event["device"] for event in run.of("worker_joined")] == [device, device]
    losses = [event["loss"] for event in run.of("round")]
    assert losses[-1] < losses[0] / 2
    (evaluation,) = run.of("evaluation")
    assert evaluation["accuracy"] > 0.9


@DEVICES
@pytest.mark.parametrize("strategy", [pytest.param("average", marks=SLOW), "diloco"])
def test_resumed_it_ends_where_it_would_have_ended(
    tmp_path: Path, data: PreparedData, device: str, strategy: str
) -> None:
    sync = {"strategy": strategy, "local_steps": 4}
    solver = {"optimizer": "AdamW", "learning_rate": 0.01, "batch_size": 16}
    sections = {"sync": sync, "solver": solver}
    first = whole(tmp_path / "whole", data, MATRICES, device, run={"workers": 1, "rounds": 8}, **sections)
    whole(tmp_path / "broken", data, MATRICES, device, run={"workers": 1, "rounds": 4}, **sections)
    second = whole(tmp_path / "broken", data, MATRICES, device, run={"workers": 1, "rounds": 8}, **sections)
    assert [event["round"] for event in second.of("round")] == [5, 6, 7, 8]
    assert second.weights() == first.weights()


@DEVICES
def test_a_killed_worker_is_healed_from_the_other(tmp_path: Path, data: PreparedData, device: str) -> None:
    config = config_of(
        tmp_path, MATRICES, run={"rounds": 10**6, "checkpoint_every": 0}, cluster={"heartbeat_timeout_seconds": 2.0}
    )
    with BareRun(tmp_path, config, data, device=device) as run:
        run.until("round", round=5)
        run.kill(1)
        run.until("worker_lost", slot=1)
        run.begin(1)
        run.until("worker_joined", slot=1, heal=True)
        run.until("round", slots=[0, 1])
        run.stop()
    assert not run.of("rollback")
    rounds = [event["round"] for event in run.of("round")]
    assert rounds == list(range(1, len(rounds) + 1)), "each was committed once"


@DEVICES
@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=SLOW), "fp16"])
def test_half_precision(tmp_path: Path, data: PreparedData, device: str, precision: str) -> None:
    run = whole(tmp_path, data, CONVOLUTIONS, device, run={"rounds": 8}, solver={"precision": precision})
    losses = [event["loss"] for event in run.of("round")]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
