"""Averaging and the outer optimiser, held against what they claim to equal."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from fakes import MemoryGroup, flatten, together
from sparknet.config import OuterOptimiser, Solver, Sync
from sparknet.training.objectives.schedules import learning_rate
from sparknet.training.sync.flat_weights import FlatWeights
from sparknet.training.sync.synchronise import Synchroniser

AVERAGE = OuterOptimiser(learning_rate=1.0, momentum=0.0, nesterov=False)
CLASSES = 5


def small_net(seed: int = 3) -> nn.Module:
    """Convolution and linear layers without BatchNorm: the gradient of a union is the mean of its parts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, CLASSES))


def batch(generator: torch.Generator, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(rows, 1, 6, 6, generator=generator)
    return images, torch.randint(CLASSES, (rows,), generator=generator)


class Replicas:
    """K replicas of one net that take plain SGD steps and synchronise in memory."""

    def __init__(self, count: int, outer: OuterOptimiser = AVERAGE, *, rate: float = 0.2) -> None:
        self.nets = [small_net() for _ in range(count)]
        self.syncs = [Synchroniser(FlatWeights(net), outer) for net in self.nets]
        self.solvers = [torch.optim.SGD(net.parameters(), lr=rate) for net in self.nets]

    def step(self, replica: int, rows: tuple[torch.Tensor, torch.Tensor]) -> None:
        sgd_step(self.nets[replica], self.solvers[replica], rows)

    def synchronise(self, samples: list[int]) -> None:
        group, total = MemoryGroup(len(self.nets)), sum(samples)
        together(
            *(
                lambda sync=sync, member=member, count=count: sync.exchange(member, count / total)
                for sync, member, count in zip(self.syncs, group.members, samples, strict=True)
            )
        )
        for sync in self.syncs:
            sync.apply()

    def weights(self, replica: int = 0) -> torch.Tensor:
        return flatten(self.nets[replica].parameters())


def sgd_step(net: nn.Module, solver: torch.optim.Optimizer, rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    solver.zero_grad()
    functional.cross_entropy(net(rows[0]), rows[1]).backward()
    solver.step()


@pytest.mark.parametrize(
    "sizes", [[8, 8], [8, 8, 8], [8, 8, 8, 8], [3, 13], [1, 7, 16], [2, 5, 11, 30]], ids=lambda sizes: f"{sizes}"
)
def test_averaging_after_every_step_is_synchronous_sgd_on_the_union_batch(sizes):
    generator = torch.Generator().manual_seed(1)
    replicas, alone = Replicas(len(sizes)), small_net()
    solver = torch.optim.SGD(alone.parameters(), lr=0.2)
    before = flatten(alone.parameters())
    for _ in range(10):
        parts = [batch(generator, rows) for rows in sizes]
        for replica, part in enumerate(parts):
            replicas.step(replica, part)
        replicas.synchronise(sizes)
        sgd_step(alone, solver, (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])))
    after = flatten(alone.parameters())
    assert (after - before).abs().max() > 0.05, "nothing was learned: the comparison would say nothing"
    torch.testing.assert_close(replicas.weights(), after, rtol=0, atol=1e-6)


def test_equal_weights_for_unequal_batches_are_not_synchronous_sgd():
    """The weights by samples are what makes the equality: without them it does not hold."""
    generator = torch.Generator().manual_seed(1)
    replicas, alone = Replicas(2), small_net()
    solver = torch.optim.SGD(alone.parameters(), lr=0.2)
    parts = [batch(generator, 3), batch(generator, 13)]
    for replica, part in enumerate(parts):
        replicas.step(replica, part)
    replicas.synchronise([1, 1])
    sgd_step(alone, solver, (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])))
    assert (replicas.weights() - flatten(alone.parameters())).abs().max() > 1e-4


def train_for(replicas: Replicas, rounds: int, local_steps: int) -> list[torch.Tensor]:
    """The weights after each round, replicas on different data."""
    generators = [torch.Generator().manual_seed(10 + k) for k in range(len(replicas.nets))]
    trace = []
    for _ in range(rounds):
        for replica, generator in enumerate(generators):
            for _ in range(local_steps):
                replicas.step(replica, batch(generator, 4 + replica))
        replicas.synchronise([4 + replica for replica in range(len(replicas.nets))])
        trace.append(replicas.weights())
        hashes = {sync.anchor_hash for sync in replicas.syncs}
        assert len(hashes) == 1, "replicas differ after a commit"
        for net in replicas.nets[1:]:
            assert torch.equal(flatten(net.parameters()), replicas.weights())
    return trace


@pytest.mark.parametrize("nesterov", [False, True])
def test_diloco_with_rate_1_and_no_momentum_is_averaging_bit_for_bit(nesterov):
    plain = Sync(strategy="diloco", outer_learning_rate=1.0, outer_momentum=0.0, outer_nesterov=nesterov).outer
    averaged = train_for(Replicas(3, Sync(strategy="average").outer), 5, 4)
    stepped = train_for(Replicas(3, plain), 5, 4)
    assert len(averaged) == 5
    for one, other in zip(averaged, stepped, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(
    "outer",
    [
        OuterOptimiser(learning_rate=0.7, momentum=0.9, nesterov=True),
        OuterOptimiser(learning_rate=0.8, momentum=0.5, nesterov=False),
        OuterOptimiser(learning_rate=0.5, momentum=0.0, nesterov=False),
        OuterOptimiser(learning_rate=1.0, momentum=0.2, nesterov=False),
    ],
    ids=["diloco", "heavy ball", "slow", "slowmo"],
)
def test_the_outer_optimiser_is_torchs_sgd_on_the_averaged_difference(outer, count):
    """The same in float64, with torch.optim.SGD as the optimiser and the mean computed directly."""
    replicas = Replicas(count, outer)
    anchor = nn.Parameter(replicas.weights())
    reference = torch.optim.SGD([anchor], lr=outer.learning_rate, momentum=outer.momentum, nesterov=outer.nesterov)
    generator = torch.Generator().manual_seed(4)
    for _ in range(6):
        for replica in range(count):
            for _ in range(3):
                replicas.step(replica, batch(generator, 4 + 3 * replica))
        samples = [4 + 3 * replica for replica in range(count)]
        mean = sum(n * replicas.weights(k) for k, n in enumerate(samples)) / sum(samples)
        replicas.synchronise(samples)
        anchor.grad = anchor.detach() - mean
        reference.step()
        torch.testing.assert_close(replicas.weights(), anchor.detach(), rtol=1e-5, atol=1e-6)


class OneWeight(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))


@pytest.mark.parametrize(
    ("outer", "expected"),
    [
        # Two replicas start at 1. Local steps take the first to anchor - 0.2 and the second to anchor - 0.6,
        # with 10 and 30 samples: the average lies 0.25 * 0.2 + 0.75 * 0.6 = 0.5 below the anchor, each round.
        (AVERAGE, [0.5, 0.0, -0.5]),
        # v: 0.5, 0.9 * 0.5 + 0.5 = 0.95, 0.9 * 0.95 + 0.5 = 1.355; steps of 0.7 (0.5 + 0.9 v):
        # 0.7 * 0.95 = 0.665, 0.7 * 1.355 = 0.9485, 0.7 * 1.7195 = 1.20365
        (OuterOptimiser(learning_rate=0.7, momentum=0.9, nesterov=True), [0.335, -0.6135, -1.81715]),
        # v: 0.5, 0.75, 0.875; steps of 0.8 v: 0.4, 0.6, 0.7
        (OuterOptimiser(learning_rate=0.8, momentum=0.5, nesterov=False), [0.6, 0.0, -0.7]),
        # steps of 0.5 * 0.5
        (OuterOptimiser(learning_rate=0.5, momentum=0.0, nesterov=False), [0.75, 0.5, 0.25]),
    ],
    ids=["average", "nesterov", "heavy ball", "slow"],
)
def test_the_outer_optimiser_follows_the_trace_worked_out_by_hand(outer, expected):
    nets = [OneWeight(1.0), OneWeight(1.0)]
    syncs = [Synchroniser(FlatWeights(net), outer) for net in nets]
    trace = []
    for _ in expected:
        with torch.no_grad():
            nets[0].weight -= 0.2
            nets[1].weight -= 0.6
        first, second = MemoryGroup(2).members
        together(lambda m=first: syncs[0].exchange(m, 0.25), lambda m=second: syncs[1].exchange(m, 0.75))
        for sync in syncs:
            sync.apply()
        trace.append(nets[0].weight.item())
        assert nets[1].weight.item() == trace[-1]
    assert trace == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("solver", "rates"),
    [
        # {iteration: rate}, of 100 iterations
        (Solver(learning_rate=0.3), {0: 0.3, 50: 0.3, 100: 0.3}),
        (
            Solver(learning_rate=0.5, policy="step", gamma=0.1, step_size=30),
            {0: 0.5, 29.5: 0.5, 30: 0.05, 59: 0.05, 60: 0.005, 99: 0.0005},
        ),
        (
            Solver(learning_rate=0.2, policy="cosine"),
            {0: 0.2, 25: 0.1 * (1 + math.sqrt(0.5)), 50: 0.1, 100 / 3: 0.15, 200 / 3: 0.05, 100: 0.0, 130: 0.0},
        ),
    ],
    ids=lambda value: value.policy if isinstance(value, Solver) else "",
)
def test_the_learning_rate_follows_its_policy(solver, rates):
    for iteration, expected in rates.items():
        assert learning_rate(solver, iteration, 100) == pytest.approx(expected, rel=1e-12, abs=1e-15), iteration
