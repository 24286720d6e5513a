"""Two replicas that are interrupted after a round and go on in new processes end where they would have ended."""

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from fakes import MemoryGroup, together
from small_modules import ADMITTED, ROWS, assert_equal, small_net
from sparknet.config import Data, Net, ParameterGroup, Run, RunConfig, Solver, Sync
from sparknet.data.loading.loader import Batch
from sparknet.data.loading.sampling_order import Cursor
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.objectives.optimiser import build_inner_solver
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.state_bytes import dump_weights, load_weights
from sparknet.training.sync.flat_weights import FlatWeights
from sparknet.training.sync.synchronise import Synchroniser
from sparknet.training.worker.replica import Replica

GOES_ON = threading.Event()
LOCAL_STEPS, ACCUMULATE = 2, 2
SCHEDULED = {
    "learning_rate": 0.01,
    "policy": "cosine",
    "warmup_steps": 3,
    "clip_norm": 0.5,
    "accumulate": ACCUMULATE,
}


def batches(slot: int, first: int) -> Iterator[Batch]:
    """Random rows without end, from a place on; the same for a slot and a place."""
    for number in itertools.count(first):
        random = np.random.default_rng([slot, number])
        rows = {"x": random.standard_normal((5, 6)).astype(np.float32), "y": random.integers(0, 4, 5)}
        yield Batch(columns=rows, cursor=Cursor(epoch=0, position=5 * number))


class Pair:
    """Two replicas that average after each round, as they are when they have just been made."""

    def __init__(self, solver: Solver, sync: Sync) -> None:
        config = RunConfig(
            data=Data(source="digits", validation_fraction=0.2),
            net=Net(name="t:net"),
            run=Run(rounds=6),
            solver=solver,
            sync=sync,
        )
        self.replicas = [self._replica(config, slot) for slot in range(2)]
        self.syncs = [Synchroniser(FlatWeights(one.module), sync.outer) for one in self.replicas]
        self._reset = sync.inner_state == "reset"

    @staticmethod
    def _replica(config: RunConfig, slot: int) -> Replica:
        objective = ModuleObjective(small_net(), ROWS, name="net")
        recipe = Recipe(net=config.net, solver=config.solver)
        solver = build_inner_solver(recipe, objective, total_iterations=6 * LOCAL_STEPS)
        return Replica(objective, solver, config, slot=slot)

    def train(self, rounds: range) -> None:
        for round in rounds:
            for slot, replica in enumerate(self.replicas):
                loader = batches(slot, round * LOCAL_STEPS * ACCUMULATE)
                iterations = range(round * LOCAL_STEPS, (round + 1) * LOCAL_STEPS)
                assert replica.take_steps(loader, LOCAL_STEPS, round=round, iterations=iterations, ended=GOES_ON)
            group = MemoryGroup(2)
            together(*(lambda s=s, m=m: s.exchange(m, 0.5) for s, m in zip(self.syncs, group.members, strict=True)))
            for sync, replica in zip(self.syncs, self.replicas, strict=True):
                sync.apply()
                if self._reset:
                    replica.forget_inner_state()

    def state(self) -> tuple[bytes, list[bytes]]:
        """The weights, which are those of both, and what each keeps for itself."""
        inner = [bytes(replica.inner_state_file().whole()) for replica in self.replicas]
        return bytes(dump_weights(self.module)), inner

    def load(self, state: tuple[bytes, list[bytes]]) -> None:
        for replica, sync, inner in zip(self.replicas, self.syncs, state[1], strict=True):
            load_weights(replica.module, state[0])
            sync.restart()
            replica.forget_inner_state()
            replica.load_inner_state(inner)

    @property
    def module(self) -> nn.Module:
        return self.replicas[0].module


def goes_on_exactly(solver: Solver, sync: Sync | None = None) -> None:
    sync = sync or Sync(local_steps=LOCAL_STEPS)
    whole, broken, new = (Pair(solver, sync) for _ in range(3))
    whole.train(range(6))
    broken.train(range(3))
    # One that has trained already, as a worker that falls back has.
    new.train(range(1))
    new.load(broken.state())
    new.train(range(3, 6))
    assert not torch.equal(whole.module[0].weight, broken.module[0].weight)
    assert_equal(whole.module, new.module)
    assert whole.state() == new.state()
    assert whole.syncs[0].anchor_hash == new.syncs[1].anchor_hash


@pytest.mark.parametrize("name", ADMITTED)
def test_with_any_optimiser(name: str) -> None:
    goes_on_exactly(Solver(optimizer=name, **SCHEDULED))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["AdamW", "Muon", "Adagrad", "SGD"])
def test_in_any_precision(name: str, precision) -> None:
    goes_on_exactly(Solver(optimizer=name, precision=precision, **SCHEDULED))


@pytest.mark.parametrize("name", ["Adagrad", "AdamW", "Muon"])
def test_where_each_round_begins_without_state(name: str) -> None:
    goes_on_exactly(Solver(optimizer=name, **SCHEDULED), Sync(local_steps=LOCAL_STEPS, inner_state="reset"))


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "AdamW", "arguments": {"fused": True}, "precision": "fp16"},
        {"optimizer": "AdamW", "arguments": {"amsgrad": True, "foreach": True}},
        {"optimizer": "RMSprop", "arguments": {"centered": True}, "momentum": 0.5},
        {"optimizer": "Adagrad", "arguments": {"initial_accumulator_value": 0.1, "lr_decay": 0.01}},
        {"optimizer": "SGD", "arguments": {"nesterov": True}},
        {"optimizer": "NAdam", "arguments": {"decoupled_weight_decay": True}, "weight_decay": 0.1},
        {"optimizer": "AdamW", "decay_norms_and_biases": False},
        {"optimizer": "AdamW", "groups": (ParameterGroup(pattern="3.*", rate_factor=0.1),)},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values())[:40],
)
def test_with_arguments_and_groups(settings) -> None:
    goes_on_exactly(Solver(**(SCHEDULED | settings)))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ADMITTED)
def test_a_newcomer_has_the_state_of_rank_0(name: str, precision) -> None:
    solver, sync = Solver(optimizer=name, precision=precision, **SCHEDULED), Sync(local_steps=LOCAL_STEPS)
    old, new = Pair(solver, sync), Pair(solver, sync)
    old.train(range(2))
    giver, taker = old.replicas[0], new.replicas[1]
    given = giver.inner_state_file()
    group = MemoryGroup(2)
    _, inner = together(
        lambda: old.syncs[0].heal(group.members[0], "keep", given),
        lambda: new.syncs[1].heal(group.members[1], "receive", b""),
    )
    taker.load_inner_state(inner)
    assert bytes(taker.inner_state_file().whole()) == bytes(given.whole())
    assert_equal(giver.module, taker.module)
