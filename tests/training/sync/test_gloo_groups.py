"""Gloo groups of real processes that die, hang and are left."""

import signal
import time

import pytest

from group_member import Member
from sparknet.spark.jobs.ports import DriverHost
from sparknet.spark.running.driver_client import DriverAddress
from sparknet.spark.running.driver_service import DriverService
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import Rules
from sparknet.training.run_files.checkpoint import Checkpoints

TOKEN = "a token of this test"
BIG = 4_000_000
"""Floats that do not fit into a socket's buffers: an operation on them waits for every peer."""


class Crew:
    """Members that are there for every test; those that a test has used up are replaced."""

    def __init__(self, address: DriverAddress) -> None:
        self._address = address
        self._members: list[Member] = []
        self._epoch = 0

    def take(self, count: int) -> list[Member]:
        for member in self._members:
            if member.struck or member.process.poll() is not None:
                member.end()
        self._members = [member for member in self._members if member.process.poll() is None]
        fresh = [Member(self._address) for _ in range(count - len(self._members))]
        for member in fresh:
            assert member.heard()["ready"]
        self._members += fresh
        return self._members[:count]

    def epoch(self) -> int:
        """A membership epoch that no group has had."""
        self._epoch += 1
        return self._epoch

    def end(self) -> None:
        for member in self._members:
            member.end()


@pytest.fixture(scope="module")
def crew(tmp_path_factory):
    coordinator = Coordinator(Rules(slots=1, rounds=1, plan=RoundPlan(local_steps=1)), now=time.monotonic())
    checkpoints = Checkpoints(tmp_path_factory.mktemp("run"), keep=2)
    with DriverService(coordinator, checkpoints, at=DriverHost(host="127.0.0.1"), token=TOKEN) as service:
        crew = Crew(DriverAddress(uri=service.address, token=TOKEN))
        try:
            yield crew
        finally:
            crew.end()


def all_do(members, do, *, epoch, values=None, count=1, **more):
    """Everybody does the same with a value of their own; the answers in rank order."""
    for rank, member in enumerate(members):
        value = values[rank] if values else 0
        member.tell(do, epoch=epoch, rank=rank, size=len(members), value=value, count=count, **more)
    answers = [member.heard() for member in members]
    return [{**answer, "value": sum(answer.get("value", []))} for answer in answers]


def begin_sum(members, *, epoch, size):
    """The first members begin a sum that cannot end without the others."""
    for rank, member in enumerate(members):
        member.tell("sum", epoch=epoch, rank=rank, size=size, value=1, count=BIG, announced=True)
    for member in members:
        assert member.heard()["begun"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sum_maximum_and_broadcast(crew, size):
    members, epoch = crew.take(size), crew.epoch()
    values = [3, 10, -4][:size]
    for count in (1, 1001):
        for do, expected in (("sum", sum(values)), ("max", max(values)), ("broadcast", 3)):
            answers = all_do(members, do, epoch=epoch, values=values, count=count)
            assert [answer["value"] for answer in answers] == [expected] * size
            assert all(answer["same"] for answer in answers)


@pytest.mark.parametrize("count", [1, 1000, 1001])
def test_what_is_longer_than_one_operation_may_be_goes_in_several(crew, count):
    members, epoch = crew.take(2), crew.epoch()
    for do, expected in (("sum", 13), ("max", 10), ("broadcast", 3)):
        answers = all_do(members, do, epoch=epoch, values=[3, 10], count=count, most_bytes=1600)
        assert [answer["value"] for answer in answers] == [expected] * 2
        assert all(answer["same"] for answer in answers)
    all_do(members, "sum", epoch=epoch, values=[0, 0], most_bytes=1 << 30)


def test_a_peer_that_dies_between_two_pieces_frees_the_others(crew):
    members, epoch, eighth = crew.take(3), crew.epoch(), 4 * BIG // 8
    all_do(members, "enter", epoch=epoch, most_bytes=eighth)
    *others, victim = members
    begin_sum(others, epoch=epoch, size=3)
    # Two pieces of eight, then no more.
    assert victim.does("sum", epoch=epoch, rank=2, size=3, value=1, count=BIG // 4)["value"] == [3]
    victim.signal(signal.SIGKILL)
    for answer in [member.heard() for member in others]:
        assert "exchanging weights" in answer["failed"]
    again = all_do(others, "sum", epoch=crew.epoch(), values=[1, 2], count=BIG, most_bytes=1 << 30)
    assert [answer["value"] for answer in again] == [3, 3]


@pytest.mark.slow
def test_sums_and_broadcasts_of_more_than_2_gib(crew):
    """Two processes of 2.2 GB each."""
    members, epoch = crew.take(2), crew.epoch()
    for do, expected in (("sum", 13), ("broadcast", 3)):
        answers = all_do(members, do, epoch=epoch, values=[3, 10], count=550_000_000, most_bytes=1 << 30)
        assert [answer["value"] for answer in answers] == [expected] * 2
        assert all(answer["same"] for answer in answers)


def test_a_new_membership_makes_a_new_group(crew):
    members = crew.take(3)
    for part in (members, members[1:], members[::-1]):
        answers = all_do(part, "broadcast", epoch=crew.epoch(), values=[7, 8, 9][: len(part)])
        assert [answer["value"] for answer in answers] == [7] * len(part)


def test_a_broadcast_of_nothing_is_nothing(crew):
    members = crew.take(2)
    epoch = crew.epoch()
    for rank, member in enumerate(members):
        member.tell("broadcast", epoch=epoch, rank=rank, size=2, value=1, count=0)
    assert [member.heard()["same"] for member in members] == [True, True]


def test_a_killed_peer_frees_everybody_at_once(crew):
    """Only the two neighbours in the ring notice it; the one opposite is freed when they leave."""
    members, epoch = crew.take(4), crew.epoch()
    all_do(members, "enter", epoch=epoch)
    *others, victim = members
    begin_sum(others, epoch=epoch, size=4)
    killed = victim.signal(signal.SIGKILL)
    answers = [member.heard() for member in others]
    for answer in answers:
        assert "exchanging weights" in answer["failed"]
        assert answer["at"] - killed < 2.0
    again = all_do(others, "sum", epoch=crew.epoch(), values=[1, 2, 3])
    assert [answer["value"] for answer in again] == [6, 6, 6]


def test_abort_frees_those_that_wait_for_a_hung_peer_and_the_rest_go_on(crew):
    members, epoch = crew.take(3), crew.epoch()
    all_do(members, "enter", epoch=epoch)
    *others, hung = members
    hung.signal(signal.SIGSTOP)
    begin_sum(others, epoch=epoch, size=3)
    aborted = time.monotonic()
    for member in others:
        member.tell("abort", epoch=epoch)
    for answer in [member.heard() for member in others]:
        assert "a peer died while" in answer["failed"]
        assert answer["at"] - aborted < 1.0
    began = time.monotonic()
    again = all_do(others, "sum", epoch=crew.epoch(), values=[1, 2], count=BIG)
    assert [answer["value"] for answer in again] == [3, 3]
    assert max(answer["at"] for answer in again) - began < 2.0


def test_abort_frees_those_that_wait_for_a_peer_that_never_comes(crew):
    (member, _), epoch = crew.take(2), crew.epoch()
    member.tell("enter", epoch=epoch, rank=0, size=2)
    aborted = time.monotonic()
    member.tell("abort", epoch=epoch)
    answer = member.heard()
    assert "failed" in answer
    assert answer["at"] - aborted < 1.0


def test_a_given_up_epoch_cannot_be_entered(crew):
    members, epoch = crew.take(2), crew.epoch()
    members[0].tell("abort", epoch=epoch)
    for given_up in (epoch, epoch - 1):
        answer = members[0].does("enter", epoch=given_up, rank=0, size=2)
        assert answer["failed"] == f"membership epoch {given_up} is already given up"
    answers = all_do(members, "sum", epoch=crew.epoch(), values=[1, 2])
    assert [answer["value"] for answer in answers] == [3, 3]


def test_an_abort_of_an_older_epoch_leaves_the_group_alone(crew):
    members = crew.take(2)
    older, epoch = crew.epoch(), crew.epoch()
    all_do(members, "enter", epoch=epoch)
    for member in members:
        member.tell("abort", epoch=older)
    answers = all_do(members, "sum", epoch=epoch, values=[1, 2])
    assert [answer["value"] for answer in answers] == [3, 3]


def test_a_peer_that_does_not_come_in_time_is_an_error(crew):
    impatient = Member(crew._address, timeout_seconds=1.0)
    try:
        assert impatient.heard()["ready"]
        answer = impatient.does("enter", epoch=crew.epoch(), rank=0, size=2)
        assert "meeting the other workers" in answer["failed"]
    finally:
        impatient.end()


@pytest.mark.parametrize("peer", ["still hangs", "has died"])
def test_a_process_that_leaves_an_operation_behind_ends_cleanly(crew, peer):
    members, epoch = crew.take(2), crew.epoch()
    all_do(members, "enter", epoch=epoch)
    leaver, hung = members
    hung.signal(signal.SIGSTOP)
    begin_sum([leaver], epoch=epoch, size=2)
    leaver.tell("abort", epoch=epoch)
    assert "failed" in leaver.heard()
    if peer == "has died":
        hung.signal(signal.SIGKILL)
        assert leaver.does("outlast")["left_behind"] == 0
    leaver.struck = True
    told = time.monotonic()
    leaver.tell("exit")
    assert leaver.process.wait(10) == 0
    assert time.monotonic() - told < 3.0
