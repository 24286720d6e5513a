"""Synchronising replicas: what is averaged how, what a joiner gets, and that a failure changes nothing."""

import numpy as np
import pytest
import torch
from torch import nn

from fakes import MemoryGroup, flatten, together
from sparknet.config import OuterOptimiser
from sparknet.errors import TrainingDiverged
from sparknet.training.sync.flat_weights import FOLD, FlatWeights, WeightsHash
from sparknet.training.sync.gloo_groups import ExchangeFailed, SoloGroup
from sparknet.training.sync.pieces import cut
from sparknet.training.sync.synchronise import Synchroniser

AVERAGE = OuterOptimiser(learning_rate=1.0, momentum=0.0, nesterov=False)
DILOCO = OuterOptimiser(learning_rate=0.7, momentum=0.9, nesterov=True)


def net_with_statistics() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


class Replica:
    """A net and its synchroniser; `wander` stands for local steps."""

    def __init__(
        self,
        outer: OuterOptimiser = AVERAGE,
        net: nn.Module | None = None,
        *,
        average: bool = True,
        mirror: bool = False,
    ) -> None:
        self.net = net or net_with_statistics()
        self.sync = Synchroniser(FlatWeights(self.net, mirror=mirror), outer, average=average)

    def wander(self, seed: int, *, scale: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in [*self.net.parameters(), *(b for b in self.net.buffers() if b.is_floating_point())]:
                steps = scale * torch.rand(tensor.shape, generator=generator, dtype=torch.float32)
                tensor += steps.to(tensor)
            for counter in (b for b in self.net.buffers() if not b.is_floating_point()):
                counter += seed

    def state(self) -> dict[str, torch.Tensor]:
        self.sync.weights.gather()
        momentum = torch.empty(0) if self.sync.momentum is None else self.sync.momentum
        parts = {"local": self.sync.weights.local, "anchor": self.sync.anchor, "momentum": momentum}
        parts["counters"] = self.sync.weights.read_counters()
        return {name: part.clone() for name, part in parts.items()}


def exchange(replicas: list[Replica], weights: list[float], group: MemoryGroup | None = None) -> None:
    group = group or MemoryGroup(len(replicas))
    together(
        *(
            lambda replica=replica, member=member, weight=weight: replica.sync.exchange(member, weight)
            for replica, member, weight in zip(replicas, group.members, weights, strict=True)
        )
    )


def commit(replicas: list[Replica], weights: list[float]) -> None:
    exchange(replicas, weights)
    for replica in replicas:
        replica.sync.apply()


def heal(replicas: list[Replica], roles: list[str], inner: list[bytes], group: MemoryGroup | None = None) -> list:
    group = group or MemoryGroup(len(replicas))
    return together(
        *(
            lambda r=replica, m=member, role=role, own=own: r.sync.heal(m, role, own)
            for replica, member, role, own in zip(replicas, group.members, roles, inner, strict=True)
        )
    )


def assert_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


# Averaging --------------------------------------------------------------------------------------------------


def test_weights_and_statistics_are_averaged_by_samples():
    replicas = [Replica(), Replica(), Replica()]
    for seed, replica in enumerate(replicas):
        replica.wander(seed)
    samples = [10, 30, 24]
    tensors = [[*r.net.parameters(), r.net[1].running_mean, r.net[1].running_var] for r in replicas]
    expected = sum(n / 64 * flatten(t).numpy() for n, t in zip(samples, tensors, strict=True))
    commit(replicas, [n / 64 for n in samples])
    for own in tensors:
        np.testing.assert_allclose(flatten(own).numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "outer", [AVERAGE, DILOCO, OuterOptimiser(learning_rate=0.5, momentum=0.0, nesterov=False)]
)
def test_the_first_weight_is_told_before_it_is_applied(outer):
    """Of the average, of a step of its own rate, and of one with momentum, whose second step has a velocity."""
    replicas = [Replica(outer), Replica(outer)]
    for round in range(2):
        for seed, replica in enumerate(replicas):
            replica.wander(10 * round + seed)
        exchange(replicas, [0.25, 0.75])
        told = [replica.sync.first_weight() for replica in replicas]
        assert told == [replica.sync.first_weight() for replica in replicas], "telling has moved something"
        for replica in replicas:
            replica.sync.apply()
        assert told == [replica.net[0].weight[0, 0].item() for replica in replicas]
        assert told[0] == told[1]


def test_each_replica_of_strategy_none_tells_its_own_first_weight():
    replicas = [Replica(average=False), Replica(average=False)]
    for seed, replica in enumerate(replicas):
        replica.wander(seed)
    exchange(replicas, [0.5, 0.5])
    told = [replica.sync.first_weight() for replica in replicas]
    assert told == [replica.net[0].weight[0, 0].item() for replica in replicas]
    assert told[0] != told[1]


def test_counters_take_the_maximum():
    replicas = [Replica(), Replica(), Replica()]
    for count, replica in zip([5, 11, 2], replicas, strict=True):
        replica.net[1].num_batches_tracked.fill_(count)
    commit(replicas, [0.2, 0.3, 0.5])
    assert [replica.net[1].num_batches_tracked.item() for replica in replicas] == [11, 11, 11]


@pytest.mark.parametrize("outer", [DILOCO, OuterOptimiser(learning_rate=0.5, momentum=0.0, nesterov=False)])
def test_statistics_never_see_the_outer_optimiser(outer):
    """Momentum on a variance would make it negative; the mean of variances cannot be."""
    replicas = [Replica(outer), Replica(outer)]
    for round in range(4):
        for seed, replica in enumerate(replicas):
            replica.wander(10 * round + seed)
        with torch.no_grad():
            for replica, factor in zip(replicas, (0.1, 0.3), strict=True):
                replica.net[1].running_var.mul_(factor)
        expected = (replicas[0].net[1].running_var.double() + replicas[1].net[1].running_var.double()) / 2
        weight = (replicas[0].net[0].weight.double() + replicas[1].net[0].weight.double()) / 2
        commit(replicas, [0.5, 0.5])
        for replica in replicas:
            torch.testing.assert_close(replica.net[1].running_var.double(), expected, rtol=1e-6, atol=1e-7)
            assert (replica.net[0].weight - weight).abs().max() > 1e-3, "the outer optimiser did nothing"


def test_all_replicas_confirm_one_hash_and_it_is_that_of_their_weights():
    replicas = [Replica(DILOCO) for _ in range(3)]
    seen = {replicas[0].sync.anchor_hash}
    for round in range(3):
        for seed, replica in enumerate(replicas):
            replica.wander(10 * round + seed)
        commit(replicas, [0.5, 0.25, 0.25])
        assert len({replica.sync.anchor_hash for replica in replicas}) == 1
        for replica in replicas:
            assert WeightsHash.of(replica.sync.weights.local) == replica.sync.anchor_hash
        assert replicas[0].sync.anchor_hash not in seen
        seen.add(replicas[0].sync.anchor_hash)


def test_frozen_parameters_stay_exactly_as_they_are():
    replicas = []
    for _ in range(2):
        net = net_with_statistics()
        net[0].weight.requires_grad_(False)
        replicas.append(Replica(DILOCO, net))
    frozen = replicas[0].net[0].weight.clone()
    for round in range(3):
        for seed, replica in enumerate(replicas):
            with torch.no_grad():
                replica.net[2].weight += seed + round
        commit(replicas, [0.5, 0.5])
    assert torch.equal(replicas[0].net[0].weight, frozen)
    assert torch.equal(replicas[1].net[0].weight, frozen)


def test_a_float64_net_is_averaged_too():
    replicas = [Replica(net=net_with_statistics().double()) for _ in range(2)]
    for seed, replica in enumerate(replicas):
        replica.wander(seed)
    expected = (flatten(replicas[0].net.parameters()) + flatten(replicas[1].net.parameters())) / 2
    commit(replicas, [0.5, 0.5])
    for replica in replicas:
        assert replica.net[0].weight.dtype == torch.float64
        torch.testing.assert_close(flatten(replica.net.parameters()), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(flatten(replicas[0].net.parameters()), flatten(replicas[1].net.parameters()))


def test_strategy_none_keeps_every_replica_as_it_is():
    replicas = [Replica(average=False), Replica(average=False)]
    for seed, replica in enumerate(replicas):
        replica.wander(seed + 1)
    own = [replica.state() for replica in replicas]
    commit(replicas, [0.5, 0.5])
    for before, replica in zip(own, replicas, strict=True):
        assert torch.equal(replica.sync.weights.local, before["local"])
        assert torch.equal(replica.sync.anchor, before["local"])
        assert torch.equal(replica.sync.weights.read_counters(), before["counters"])
    assert replicas[0].sync.anchor_hash != replicas[1].sync.anchor_hash


def test_alone_the_average_is_the_own_weights():
    replica = Replica()
    replica.wander(3)
    local = replica.sync.weights.local.clone()
    replica.sync.exchange(SoloGroup(), 1.0)
    replica.sync.apply()
    assert torch.equal(replica.sync.weights.local, local)
    assert torch.equal(replica.sync.anchor, local)


# What fails -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["weight", "statistic"])
def test_a_weight_that_is_not_finite_is_refused_before_anything_is_sent(bad, where):
    replica = Replica()
    target = replica.net[0].weight if where == "weight" else replica.net[1].running_var
    with torch.no_grad():
        target.view(-1)[2] = bad
    anchor = replica.sync.anchor.clone()
    member = MemoryGroup(1).members[0]
    with pytest.raises(TrainingDiverged, match=r"no longer finite.*lower solver\.learning_rate"):
        replica.sync.exchange(member, 0.5)
    assert member.operations == 0
    assert torch.equal(replica.sync.anchor, anchor)


def test_infinities_of_both_signs_do_not_cancel():
    replica = Replica()
    with torch.no_grad():
        replica.net[0].weight[0, :2] = torch.tensor([float("inf"), -float("inf")])
    with pytest.raises(TrainingDiverged):
        replica.sync.exchange(SoloGroup(), 1.0)


@pytest.mark.parametrize("break_after", [0, 1], ids=["weights", "counters"])
@pytest.mark.parametrize("outer", [AVERAGE, DILOCO], ids=["average", "diloco"])
def test_an_exchange_that_fails_changes_nothing_and_can_be_tried_again(outer, break_after):
    replicas, others = [Replica(outer), Replica(outer)], [Replica(outer), Replica(outer)]
    for pair in (replicas, others):
        for seed, replica in enumerate(pair):
            replica.wander(seed + 1)
    before = [replica.state() for replica in replicas]
    with pytest.raises(ExchangeFailed):
        exchange(replicas, [0.5, 0.5], MemoryGroup(2, break_after=break_after))
    for replica in replicas:
        replica.sync.abandon()
    for state, replica in zip(before, replicas, strict=True):
        assert_same(state, replica.state())
    commit(replicas, [0.5, 0.5])
    commit(others, [0.5, 0.5])
    assert_same(others[0].state(), replicas[0].state())


def test_what_an_abandoned_exchange_writes_later_goes_nowhere():
    class Late:
        """A group whose operation fails and writes into its buffer long after."""

        def sum(self, buffer):
            self.buffer = buffer
            raise ExchangeFailed("a peer died while exchanging weights")

    replica, late = Replica(), Late()
    replica.wander(1)
    local = replica.sync.weights.local.clone()
    with pytest.raises(ExchangeFailed):
        replica.sync.exchange(late, 0.5)
    replica.sync.abandon()
    replica.sync.exchange(SoloGroup(), 1.0)
    late.buffer.fill_(13.0)
    replica.sync.apply()
    late.buffer.fill_(14.0)
    assert torch.equal(replica.sync.anchor, local)
    assert torch.equal(replica.sync.weights.local, local)


# Healing ----------------------------------------------------------------------------------------------------


def quorum_with_a_joiner(outer: OuterOptimiser) -> tuple[list[Replica], Replica]:
    """Two replicas some rounds on, with open local steps, and a new one."""
    replicas = [Replica(outer), Replica(outer)]
    for round in range(2):
        for seed, replica in enumerate(replicas):
            replica.wander(10 * round + seed)
        commit(replicas, [0.5, 0.5])
    for seed, replica in enumerate(replicas):
        replica.wander(50 + seed)
    return replicas, Replica(outer)


@pytest.mark.parametrize("outer", [AVERAGE, DILOCO], ids=["average", "diloco"])
@pytest.mark.parametrize("own_inner", [b"", b"x", b"a longer state than that of rank 0"])
def test_a_joiner_gets_exactly_the_state_of_rank_0(outer, own_inner):
    replicas, joiner = quorum_with_a_joiner(outer)
    first, second = (replica.state() for replica in replicas)
    got = heal([*replicas, joiner], ["keep", "keep", "receive"], [b"inner of rank 0", b"other", own_inner])
    assert got == [None, None, b"inner of rank 0"]
    assert_same(first, replicas[0].state())
    assert_same(second, replicas[1].state())
    healed = joiner.state()
    assert torch.equal(healed["anchor"], first["anchor"])
    assert torch.equal(healed["local"], first["anchor"])
    assert torch.equal(healed["momentum"], first["momentum"])
    assert joiner.sync.anchor_hash == replicas[0].sync.anchor_hash


@pytest.mark.parametrize("outer", [AVERAGE, DILOCO], ids=["average", "diloco"])
def test_a_healed_joiner_adds_nothing_to_the_average_and_ends_up_with_it(outer):
    replicas, joiner = quorum_with_a_joiner(outer)
    lone, _ = quorum_with_a_joiner(outer)
    commit(lone, [0.5, 0.5])
    heal([*replicas, joiner], ["keep", "keep", "receive"], [b"i", b"i", b"i"])
    commit([*replicas, joiner], [0.5, 0.5, 0.0])
    assert joiner.sync.anchor_hash == replicas[0].sync.anchor_hash == lone[0].sync.anchor_hash
    assert_same(lone[0].state(), joiner.state())


def test_one_left_behind_keeps_its_steps_as_steps_from_the_new_anchor():
    replicas, _ = quorum_with_a_joiner(DILOCO)
    behind = Replica(DILOCO)
    behind.wander(77)
    trainable = slice(0, behind.sync.weights.trainable)
    steps = (behind.sync.weights.local - behind.sync.anchor)[trainable]
    assert heal([*replicas, behind], ["keep", "keep", "rebase"], [b"i", b"i", b"own"]) == [None, None, None]
    assert torch.equal(behind.sync.anchor, replicas[0].sync.anchor)
    assert torch.equal(behind.sync.momentum, replicas[0].sync.momentum)
    moved = (behind.sync.weights.local - behind.sync.anchor)[trainable]
    torch.testing.assert_close(moved, steps, rtol=1e-5, atol=1e-6)
    assert steps.abs().max() > 0.05


def test_rebasing_twice_is_rebasing_once():
    """The round in which a replica was healed may abort; it is then healed again."""
    replicas, _ = quorum_with_a_joiner(AVERAGE)
    behind = Replica()
    behind.wander(77)
    everybody, roles = [*replicas, behind], ["keep", "keep", "rebase"]
    heal(everybody, roles, [b"i"] * 3)
    once = behind.state()
    heal(everybody, roles, [b"i"] * 3)
    assert_same(once, behind.state())


def test_rebasing_leaves_statistics_what_they_were():
    """A variance moved by the difference of two others could be negative."""
    replicas, _ = quorum_with_a_joiner(AVERAGE)
    for replica in replicas:
        with torch.no_grad():
            replica.net[1].running_var.fill_(0.1)
    commit(replicas, [0.5, 0.5])
    behind = Replica()
    with torch.no_grad():
        behind.net[1].running_var.fill_(0.2)
    heal([*replicas, behind], ["keep", "keep", "rebase"], [b"i", b"i", b"i"])
    assert bool((behind.net[1].running_var == 0.2).all())
    commit([*replicas, behind], [0.25, 0.25, 0.5])
    torch.testing.assert_close(behind.net[1].running_var, torch.full((6,), 0.15))


@pytest.mark.parametrize("break_after", [0, 1, 2, 3], ids=["anchor", "momentum", "size", "inner"])
@pytest.mark.parametrize("role", ["receive", "rebase"])
def test_a_broadcast_that_breaks_off_leaves_the_state_untouched(break_after, role):
    replicas, joiner = quorum_with_a_joiner(DILOCO)
    joiner.wander(5)
    everybody = [*replicas, joiner]
    before = [replica.state() for replica in everybody]
    with pytest.raises(ExchangeFailed):
        heal(everybody, ["keep", "keep", role], [b"inner"] * 3, MemoryGroup(3, break_after=break_after))
    for state, replica in zip(before, everybody, strict=True):
        assert_same(state, replica.state())


def test_a_float64_joiner_holds_the_weights_in_its_module():
    replicas = [Replica(net=net_with_statistics().double()) for _ in range(2)]
    replicas[0].wander(4)
    replicas[0].sync.restart()
    heal(replicas, ["keep", "receive"], [b"i", b"i"])
    healed = flatten(replicas[1].net.parameters())
    torch.testing.assert_close(healed, flatten(replicas[0].net.parameters()), rtol=1e-6, atol=1e-7)


def test_restart_takes_the_loaded_weights_as_the_anchor():
    replica = Replica(DILOCO)
    replica.wander(1)
    replica.sync.restart()
    assert torch.equal(replica.sync.anchor, replica.sync.weights.local)
    assert replica.sync.anchor_hash == WeightsHash.of(replica.sync.weights.local)


# In pieces, and on a device --------------------------------------------------------------------------------


class Streamed:
    """Bytes that are made when they are asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def pieces(self, most_bytes: int):
        yield from cut(self.data, most_bytes)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr("sparknet.training.sync.synchronise._PIECE_BYTES", 1000)
    monkeypatch.setattr("sparknet.training.sync.flat_weights.TRANSFER", FOLD)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("role", ["receive", "rebase"])
def test_a_joiner_is_healed_alike_in_many_pieces(role):
    inner = bytes(range(256)) * 9
    states = []
    for pieces in (10**9, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sparknet.training.sync.synchronise._PIECE_BYTES", pieces)
            replicas, joiner = quorum_with_a_joiner(DILOCO)
            joiner.wander(7)
            group = MemoryGroup(3)
            got = heal([*replicas, joiner], ["keep", "keep", role], [Streamed(inner), b"", b""], group)
            assert got == [None, None, inner if role == "receive" else None]
            assert (group.members[0].operations > 4) == (pieces == 1000)
            states.append(joiner.state())
            assert joiner.sync.anchor_hash == replicas[0].sync.anchor_hash
    assert_same(*states)


@pytest.mark.usefixtures("small_pieces")
def test_those_that_keep_what_they_have_hold_one_piece_of_what_passes():
    class Watched:
        """A group of one that notes how much memory is behind what it is given."""

        def __init__(self):
            self.behind = []

        def broadcast(self, buffer):
            self.behind.append(buffer.untyped_storage().nbytes())

    replica, group = Replica(DILOCO), Watched()
    assert replica.sync.heal(group, "keep", Streamed(b"x" * 5000)) is None
    assert len(group.behind) > 30
    assert max(group.behind) <= 1000


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("break_after", [1, 40], ids=["in the anchor", "later"])
def test_a_broadcast_that_breaks_off_between_pieces_leaves_the_state_untouched(break_after):
    replicas, joiner = quorum_with_a_joiner(DILOCO)
    before = joiner.state()
    with pytest.raises(ExchangeFailed):
        heal(
            [*replicas, joiner],
            ["keep", "keep", "receive"],
            [b"i" * 9000] * 3,
            MemoryGroup(3, break_after=break_after),
        )
    assert_same(before, joiner.state())
    joiner.sync.abandon()
    heal([*replicas, joiner], ["keep", "keep", "receive"], [b"i"] * 3)
    assert torch.equal(joiner.sync.anchor, replicas[0].sync.anchor)


def test_what_an_abandoned_healing_writes_later_goes_nowhere():
    class Late:
        """A group whose broadcast fails and writes into its buffer long after."""

        def broadcast(self, buffer):
            self.buffer = buffer
            raise ExchangeFailed("a peer died while exchanging weights")

    replica, late = Replica(), Late()
    replica.wander(1)
    local = replica.sync.weights.local.clone()
    with pytest.raises(ExchangeFailed):
        replica.sync.heal(late, "receive", b"")
    replica.sync.abandon()
    replica.sync.exchange(SoloGroup(), 1.0)
    late.buffer.fill_(13.0)
    replica.sync.apply()
    assert torch.equal(replica.sync.anchor, local)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("outer", [AVERAGE, DILOCO], ids=["average", "diloco"])
def test_a_replica_on_a_device_has_the_bits_of_one_on_the_host(outer, device):
    """Through rounds, a healing, a rebase and a fall-back, all with nets of several pieces."""

    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")

    def wide() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return nn.Sequential(nn.Linear(FOLD, 3), nn.BatchNorm1d(3))

    crews = []
    for mirror in (False, True):
        first, second, joiner, behind = (
            Replica(outer, wide().to(device if mirror else "cpu"), mirror=mirror) for _ in range(4)
        )
        behind.wander(9)
        for round in range(3):
            first.wander(round)
            second.wander(round + 10)
            commit([first, second], [0.25, 0.75])
        heal([first, second, joiner, behind], ["keep", "keep", "receive", "rebase"], [b"i"] * 4)
        commit([first, second, joiner, behind], [0.25, 0.25, 0.0, 0.5])
        crews.append([first, second, joiner, behind])
    for host, mirrored in zip(*crews, strict=True):
        assert host.sync.anchor_hash == mirrored.sync.anchor_hash == crews[0][0].sync.anchor_hash
        for name, tensor in host.net.state_dict().items():
            assert torch.equal(tensor, mirrored.net.state_dict()[name].cpu()), name
        assert torch.equal(mirrored.sync.weights.flat.cpu(), host.sync.anchor)
        assert WeightsHash.of(mirrored.sync.weights.flat) == host.sync.anchor_hash, "alike on every device"
