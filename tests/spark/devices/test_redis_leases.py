"""Leases of a real Redis server: one owner at a time, whatever dies, pauses or is restarted."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from places import REPOSITORY
from redis_server import RedisServer
from sparknet.errors import ClusterError, ConfigError
from sparknet.spark.devices.redis_leases import RedisLeases, shown_url

LEASE_SECONDS = 0.8
PATIENCE_SECONDS = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path)
    yield running
    running.stop(signal.SIGKILL)


def leases_at(server: RedisServer, seconds: float = LEASE_SECONDS) -> RedisLeases:
    return RedisLeases(server.url, lease_seconds=seconds)


def test_each_gpu_has_one_owner_and_those_who_wait_are_told_of_them(server: RedisServer) -> None:
    leases = leases_at(server)
    held = [leases.acquire("a", ["0", "1"], holder=f"run {at}", wait_seconds=5) for at in range(2)]
    assert sorted(lease.gpu for lease in held) == ["0", "1"]
    with pytest.raises(ClusterError, match=r"all GPUs of a are taken: GPU 0 of a: run \d; GPU 1 .*sparknet gpus"):
        leases.acquire("a", ["0", "1"], holder="late", wait_seconds=0)
    other = leases.acquire("b", ["0", "1"], holder="elsewhere", wait_seconds=0)
    assert (other.gpu, leases.hosts()) == ("0", ["a", "b"])
    held[0].release()
    again = leases.acquire("a", ["0", "1"], holder="late", wait_seconds=0)
    assert again.gpu == held[0].gpu
    assert again.fence > held[0].fence
    for lease in (*held, other, again):
        lease.release()
    assert [one.holder for one in leases.held("a")] == ["", ""]


def test_a_lease_lives_by_its_renewals(server: RedisServer) -> None:
    lease = leases_at(server).acquire("a", ["0"], holder="r", wait_seconds=5)
    until = time.monotonic() + 3 * LEASE_SECONDS
    while time.monotonic() < until:
        assert lease.valid
        assert [one.alive for one in leases_at(server).held("a")] == [True]
    lease.release()
    assert not lease.valid


def test_what_is_freed_by_hand_is_lost_to_its_owner(server: RedisServer) -> None:
    leases = leases_at(server)
    lease = leases.acquire("a", ["0"], holder="r", wait_seconds=5)
    leases.free("a", "0")
    until = time.monotonic() + PATIENCE_SECONDS
    while lease.valid:
        assert time.monotonic() < until
    second = leases.acquire("a", ["0"], holder="s", wait_seconds=0)
    lease.release()
    assert second.valid, "the loser gives back nothing that is not its own"
    second.release()


def test_a_restarted_server_hands_out_nothing_until_owners_had_time_to_renew(server: RedisServer) -> None:
    leases = leases_at(server)
    lease = leases.acquire("a", ["0", "1"], holder="r", wait_seconds=5)
    server.stop(signal.SIGKILL)
    server.start()
    began = time.monotonic()
    second = leases.acquire("a", ["0", "1"], holder="s", wait_seconds=0)
    assert time.monotonic() - began >= 0.7 * LEASE_SECONDS
    assert lease.valid
    assert second.gpu != lease.gpu
    assert second.fence > lease.fence
    for one in (lease, second):
        one.release()


def test_a_server_that_is_not_there_is_one_error_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"Redis at redis://\*\*\*@127\.0\.0\.1:1 cannot be asked") as caught:
        RedisLeases("redis://me:secret@127.0.0.1:1", lease_seconds=1).ping()
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"cluster\.redis is 'ftp://\*\*\*@x'"):
        RedisLeases("ftp://secret@x", lease_seconds=1)
    assert shown_url("redis://host:6379") == "redis://host:6379"


OWNER = """
import json, os, sys, time
sys.path.insert(0, {src!r})
from sparknet.errors import ClusterError
from sparknet.spark.devices.redis_leases import RedisLeases
url, host, place = sys.argv[1:]
leases = RedisLeases(url, lease_seconds={lease})
while True:
    try:
        lease = leases.acquire(host, ["0", "1", "2", "3"], holder=str(os.getpid()), wait_seconds=60)
    except ClusterError:
        time.sleep(0.05)
        continue
    path = f"{{place}}/{{host}}-{{lease.gpu}}"
    while lease.valid:
        # One use of the GPU: appended in one write, as the observer reads it.
        with open(path, "ab", buffering=0) as file:
            file.write(json.dumps([lease.fence, os.getpid()]).encode() + b"\\n")
        time.sleep(0.01)
"""


def owner_at(server: RedisServer, host: str, place: Path) -> subprocess.Popen[bytes]:
    program = OWNER.format(src=str(REPOSITORY / "src"), lease=LEASE_SECONDS)
    return subprocess.Popen([sys.executable, "-c", program, server.url, host, str(place)])


class Observer:
    """Reads what was used, from outside: on no GPU may a lower fence follow a higher, and a fence has one owner."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._read: dict[str, int] = {}
        self._owners: dict[tuple[str, int], int] = {}
        self.last: dict[str, tuple[int, int]] = {}
        """By GPU the fence and the process of its last use."""

    def look(self) -> None:
        for path in self._place.iterdir():
            name = path.name
            with path.open("rb") as file:
                file.seek(self._read.get(name, 0))
                # The last line may be half written.
                whole = file.read().rpartition(b"\n")[0]
            if not whole:
                continue
            self._read[name] = self._read.get(name, 0) + len(whole) + 1
            for line in whole.splitlines():
                fence, pid = json.loads(line)
                assert fence >= self.last.get(name, (0, 0))[0], f"{name}: {fence} of {pid} after {self.last[name]}"
                assert self._owners.setdefault((name, fence), pid) == pid, f"{name}: {fence} has two owners"
                self.last[name] = (fence, pid)


def torment(server: RedisServer, place: Path, *, faults: int, seed: int) -> None:
    """Kill and pause owners, and restart the server, as often as asked; then all GPUs must be had again."""
    draw, observer = random.Random(seed), Observer(place)
    # Eight for two hosts of four GPUs, and one more each: somebody always waits.
    owners = {(host, at): owner_at(server, host, place) for host in ("a", "b") for at in range(5)}
    try:
        for _ in range(faults):
            key = draw.choice(list(owners))
            match draw.choice(["kill", "kill", "kill", "pause", "restart"]):
                case "kill":
                    owners[key].kill()
                    owners[key].wait(PATIENCE_SECONDS)
                    owners[key] = owner_at(server, key[0], place)
                case "pause":
                    owners[key].send_signal(signal.SIGSTOP)
                    # Beyond its expiry: somebody else has its GPU when it wakes.
                    time.sleep(LEASE_SECONDS * draw.uniform(0.5, 1.8))
                    owners[key].send_signal(signal.SIGCONT)
                case "restart":
                    server.stop(signal.SIGKILL)
                    server.start()
            time.sleep(draw.uniform(0, 0.2))
            observer.look()
        everyone_is_back(owners, observer)
    finally:
        for owner in owners.values():
            owner.kill()
            owner.wait(PATIENCE_SECONDS)
    observer.look()


def everyone_is_back(owners: dict[tuple[str, int], subprocess.Popen[bytes]], observer: Observer) -> None:
    """No GPU is leaked: each is used by a living owner again."""
    until = time.monotonic() + PATIENCE_SECONDS
    living = {owner.pid for owner in owners.values()}
    observer.last.clear()
    wanted = {f"{host}-{gpu}" for host in ("a", "b") for gpu in range(4)}
    while not all(observer.last.get(name, (0, 0))[1] in living for name in wanted):
        assert time.monotonic() < until, f"used again: {observer.last}"
        observer.look()


@pytest.mark.chaos
def test_never_two_owners_and_none_leaked(server: RedisServer, tmp_path: Path) -> None:
    place = tmp_path / "gpus"
    place.mkdir()
    torment(server, place, faults=25, seed=os.getpid())


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_never_two_owners_through_five_hundred_faults(server: RedisServer, tmp_path: Path) -> None:
    place = tmp_path / "gpus"
    place.mkdir()
    torment(server, place, faults=500, seed=0)
