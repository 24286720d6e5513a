"""One driver at a time on a directory in a store: real requests against a real server, real dead processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from s3_server import reach, s3_server
from sparknet.data.storage.place import LOCAL
from sparknet.errors import DataError, RunDirError
from sparknet.training.run_files import ownership
from sparknet.training.run_files.ownership import Ownership

PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def server():
    with s3_server("runs") as server:
        yield server


@pytest.fixture
def place(server, monkeypatch):
    reach(server, monkeypatch)
    yield LOCAL.place("s3://runs/one")
    server.clear()
    server.empty("runs")


@pytest.fixture
def short(monkeypatch):
    """A bound that a test can wait for; S3 tells times to the second."""
    monkeypatch.setattr(ownership, "STALE_SECONDS", 4.0)
    monkeypatch.setattr(ownership, "RENEW_SECONDS", 1.0)
    monkeypatch.setattr(ownership, "_LOOK_SECONDS", 0.2)


def claims(server):
    client = server.client()
    keys = [key for key in server.keys("runs") if "/owner-" in key]
    return [json.loads(client.get_object(Bucket="runs", Key=key)["Body"].read()) for key in keys]


class Living:
    """A driver that renews, on a thread, until it is let go."""

    def __init__(self, owner):
        self._owner, self._end = owner, threading.Event()
        self._thread = threading.Thread(target=self._renew)
        self._thread.start()

    def _renew(self):
        while not self._end.wait(0.5):
            self._owner.renew()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


def test_the_owner_says_who_it_is_and_goes(server, place):
    owner = Ownership.acquire(place)
    (claim,) = claims(server)
    assert claim["host"] == socket.gethostname()
    assert claim["pid"] == os.getpid()
    assert claim["settled"]
    assert claim["since"].endswith("UTC")
    owner.release()
    assert claims(server) == []


def test_a_second_driver_is_refused_and_leaves_nothing(server, place, short):
    owner = Ownership.acquire(place)
    with Living(owner), pytest.raises(RunDirError) as caught:
        Ownership.acquire(place)
    for words in (f"host {socket.gethostname()}", f"pid {os.getpid()}", "since 2", "end it, or choose another"):
        assert words in str(caught.value)
    owner.renew()
    assert len(claims(server)) == 1


DIES = """
import os, sys
from sparknet.data.storage.place import LOCAL
from sparknet.training.run_files.ownership import Ownership
Ownership.acquire(LOCAL.place(sys.argv[1]))
os.kill(os.getpid(), 9)
"""


def test_a_dead_driver_is_followed_when_its_claim_is_stale(server, place, short, caplog):
    dead = subprocess.run([sys.executable, "-c", DIES, place.uri], check=False)
    assert dead.returncode == -signal.SIGKILL
    (left,) = claims(server)
    owner = Ownership.acquire(place)
    assert "waiting for up to" in caplog.text
    assert f"pid {left['pid']}" in caplog.text
    (claim,) = claims(server)
    assert claim["replaced"] == [left["nonce"]]
    owner.renew()


def test_one_that_was_only_asleep_finds_that_it_has_lost(server, place, short):
    asleep = Ownership.acquire(place)
    awake = Ownership.acquire(place)
    asleep._confirmed = 0.0  # it slept for longer than a confirmation is worth
    for ask in (asleep.renew, asleep.confirm):
        with pytest.raises(RunDirError, match=r"was taken over from this run \(host .*, pid .*this run ends"):
            ask()
    awake.renew()


def test_a_claim_that_is_written_late_takes_nothing_from_the_new_owner(place, short):
    asleep = Ownership.acquire(place)
    awake = Ownership.acquire(place)
    asleep._write()  # it had looked before, and fell asleep between the two
    awake.renew()
    with pytest.raises(RunDirError, match="was taken over"):
        asleep.renew()


def test_a_claim_that_somebody_removed_is_lost(server, place):
    owner = Ownership.acquire(place)
    server.empty("runs")
    with pytest.raises(RunDirError, match="its claim was removed"):
        owner.renew()


def test_of_many_that_come_at_once_one_at_most_gets_it(server, place, monkeypatch):
    # Every claim is written before any is looked for: the worst case. The winner renews, as winners do.
    monkeypatch.setattr(ownership, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(ownership, "STALE_SECONDS", 8.0)
    start, won, refused = threading.Barrier(4), [], []

    def come():
        start.wait(PATIENCE_SECONDS)
        try:
            owner = Ownership.acquire(place)
        except RunDirError as error:
            refused.append(str(error))
            return
        won.append(owner)
        with Living(owner):
            assert done.wait(PATIENCE_SECONDS)

    done = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(come) for _ in range(4)]
        deadline = threading.Event()
        for _ in range(int(PATIENCE_SECONDS * 10)):
            if len(refused) + len(won) == 4:
                break
            deadline.wait(0.1)
        done.set()
        for future in futures:
            future.result()
    assert len(won) == 1
    assert len(refused) == 3
    assert all("in use" in words or "several drivers" in words for words in refused)


@pytest.mark.parametrize("between", ["look", "read"])
def test_a_claim_that_is_withdrawn_while_it_is_read_is_gone(server, place, between):
    owner = Ownership.acquire(place)
    (facts,) = ownership._list(place).values()
    if between == "look":
        owner.release()
        assert ownership._read(place, facts) is None
        return
    server.inject("delay", times=1, method="GET", part="owner-", seconds=1.0)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(ownership._read, place, facts)
        server.wait_for("delay")  # its size is known, and its bytes are asked for
        owner.release()
        assert reading.result() is None


def test_a_confirmation_is_asked_for_once_in_a_while_only(server, place):
    owner = Ownership.acquire(place)
    server.clear()
    owner.confirm()
    assert server.requests == []
    owner._confirmed -= 3 * ownership.RENEW_SECONDS
    owner.confirm()
    assert [request.method for request in server.requests].count("PUT") == 1
    server.clear()
    owner.confirm()
    assert server.requests == []


def test_a_bucket_that_may_not_be_written_is_an_error(server, place):
    server.inject("denied", method="PUT")
    with pytest.raises(DataError, match="access is refused"):
        Ownership.acquire(place)
    assert server.injected["denied"]


def test_a_file_that_is_no_claim_is_named(server, place):
    server.client().put_object(Bucket="runs", Key="one/owner-0123456789abcdef.json", Body=b"{}")
    with pytest.raises(RunDirError, match=r"owner-0123456789abcdef\.json is no claim .*delete it"):
        Ownership.acquire(place)
    assert len(claims(server)) == 1, "the refused driver left its own"
