"""A net of 2.2 GB: its checkpoint, with heartbeats on time, and a replica that is healed from another.

The largest of these tests needs 11 GB of memory.
"""

import threading
import time

import pytest
import torch
from torch import nn

from fakes import MemoryGroup, together
from sparknet.config import Sync
from sparknet.spark.jobs.ports import DriverHost
from sparknet.spark.running.driver_client import DriverAddress, DriverClient
from sparknet.spark.running.driver_service import DriverService
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import Rules
from sparknet.training.run_files.checkpoint import WEIGHTS, Checkpoints
from sparknet.training.run_files.state_bytes import load_weights, weights_file
from sparknet.training.sync.flat_weights import FlatWeights
from sparknet.training.sync.gloo_groups import SoloGroup
from sparknet.training.sync.synchronise import Synchroniser

FLOATS = 550_000_000
TOKEN = "a token of this test"


def big_net(value: float) -> nn.Module:
    """One parameter of more bytes than 2^31, so that no single tensor is handled as a whole number of GiB."""
    net = nn.Module()
    net.weight = nn.Parameter(torch.full((FLOATS,), value))
    return net


class Ticker:
    """A thread that notes for how long it was kept from running: a heartbeat is kept as long."""

    def __enter__(self):
        self.worst, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._tick)
        self._thread.start()
        return self

    def _tick(self):
        last = time.monotonic()
        while not self._stop.wait(0.01):
            now = time.monotonic()
            self.worst, last = max(self.worst, now - last), now

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
def test_a_checkpoint_of_more_than_2_gib_and_heartbeats_meanwhile(tmp_path):
    net = big_net(1.5)
    sync = Synchroniser(FlatWeights(net), Sync(strategy="average").outer)
    with torch.no_grad():
        net.weight[-1] = 7.0
    sync.exchange(SoloGroup(), 1.0)
    sync.apply()
    anchor_hash = sync.anchor_hash
    coordinator = Coordinator(Rules(slots=1, rounds=1, plan=RoundPlan(local_steps=1)), now=time.monotonic())
    with DriverService(
        coordinator, Checkpoints(tmp_path, keep=1), at=DriverHost(host="127.0.0.1"), token=TOKEN
    ) as service:
        client = DriverClient(DriverAddress(uri=service.address, token=TOKEN))
        with Ticker() as ticker:
            client.put_checkpoint(0, {WEIGHTS: weights_file(net)})
            net.weight.data.zero_()
            files = client.fetch_checkpoint(0)
            load_weights(net, files.pop(WEIGHTS))
        client.close()
    sync.restart()
    assert sync.anchor_hash == anchor_hash
    assert net.weight[-1] == 7.0
    assert ticker.worst < 1.0, "the default heartbeat_timeout_seconds is 2"


class Ones:
    """An inner state of 2.2 GB that is nowhere as a whole."""

    def __len__(self):
        return 4 * FLOATS

    def pieces(self, most_bytes):
        for at in range(0, len(self), most_bytes):
            yield b"\x01" * min(most_bytes, len(self) - at)


def heal(first, joiner, inner_state):
    """What the joiner gets."""
    group = MemoryGroup(2)
    return together(
        lambda: first.heal(group.members[0], "keep", inner_state),
        lambda: joiner.heal(group.members[1], "receive", b""),
    )[1]


@pytest.mark.slow
def test_healing_of_weights_of_more_than_2_gib():
    first, joiner = (Synchroniser(FlatWeights(big_net(value)), Sync().outer) for value in (1.5, 2.0))
    heal(first, joiner, b"inner")
    assert joiner.anchor_hash == first.anchor_hash
    assert joiner.weights.local[0] == joiner.weights.local[FLOATS - 1] == 1.5


@pytest.mark.slow
def test_healing_of_an_inner_state_of_more_than_2_gib():
    first, joiner = (Synchroniser(FlatWeights(nn.Linear(2, 2)), Sync().outer) for _ in range(2))
    inner = heal(first, joiner, Ones())
    assert len(inner) == 4 * FLOATS
    assert inner[0] == inner[-1] == 1
