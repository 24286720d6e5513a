"""`sparknet gpus`: what a host has, who has it, and what a dead owner left; against lock files and a real Redis."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_gpus import tell_of_gpus
from redis_server import RedisServer
from sparknet.cli.main import main
from sparknet.spark.devices.file_leases import FileLeases
from sparknet.spark.devices.gpus import host_gpus
from sparknet.spark.devices.redis_leases import RedisLeases

HOST = socket.gethostname()
LEASE_SECONDS = 3.0


@pytest.fixture(autouse=True)
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    tell_of_gpus(tmp_path, monkeypatch, 2)
    monkeypatch.setattr("tempfile.tempdir", None)
    host_gpus.cache_clear()
    yield
    host_gpus.cache_clear()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    directory = tmp_path / "redis"
    directory.mkdir()
    server = RedisServer(directory)
    yield server
    server.stop(signal.SIGKILL)


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["gpus", *words]) == code
    out, err = capsys.readouterr()
    return err if code else out


def test_list(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = said(capsys, "list").splitlines()
    assert [line.split() for line in lines] == [
        ["GPU", str(at), "Tesla", "T4,", "15360", "MiB,", "driver", "550.54.15"] for at in range(2)
    ]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    host_gpus.cache_clear()
    assert said(capsys, "list") == f"{HOST} has no GPU, or no NVIDIA driver (nvidia-smi) to tell of one.\n"


def test_lock_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "status") == "No GPU was ever handed out.\n"
    lease = FileLeases().acquire(HOST, ["0", "1"], holder="digits worker 1", wait_seconds=0)
    # But for the seconds since.
    assert said(capsys, "status").split()[:-2] == f"GPU 0 of {HOST} digits worker 1, for".split()
    told = said(capsys, "release", f"{HOST}:0", code=1)
    assert f"GPU 0 of {HOST}: digits worker 1, which is alive: what it trains would go on" in told
    told = said(capsys, "release", f"{HOST}:0", "--force", code=1)
    assert f"is locked by digits worker 1 (process {os.getpid()}), which is running; end that process" in told
    lease.release()
    assert said(capsys, "status").split() == f"GPU 0 of {HOST} free".split()
    assert said(capsys, "release", f"{HOST}:0") == f"GPU 0 of {HOST} is free.\n"


def test_a_redis_server(capsys: pytest.CaptureFixture[str], server: RedisServer) -> None:
    """Its leases of several hosts, and one that is taken from a living owner."""
    leases = RedisLeases(server.url, lease_seconds=LEASE_SECONDS)
    wait = LEASE_SECONDS * 2  # a server that began just now hands out nothing for one lease
    first = leases.acquire("host-a", ["0"], holder="worker 0", wait_seconds=wait)
    second = leases.acquire("host-b", ["3"], holder="worker 1", wait_seconds=wait)
    words = ("--redis", server.url)
    lines = [line.split() for line in said(capsys, "status", *words).splitlines()]
    assert [line[:6] for line in lines] == [
        ["GPU", "0", "of", "host-a", "worker", "0,"],
        ["GPU", "3", "of", "host-b", "worker", "1,"],
    ]
    assert len(said(capsys, "status", "--host", "host-b", *words).splitlines()) == 1
    assert "which is alive" in said(capsys, "release", "host-a:0", *words, code=1)
    assert said(capsys, "release", "host-a:0", "--force", *words) == "GPU 0 of host-a is free.\n"
    third = leases.acquire("host-a", ["0"], holder="worker 2", wait_seconds=wait)
    assert third.fence > first.fence
    assert second.valid
    for lease in (second, third):
        lease.release()
    assert [line.split()[-1] for line in said(capsys, "status", *words).splitlines()] == ["free", "free"]


def test_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'0' names no GPU: give HOST:GPU as `sparknet gpus status` shows them" in said(
        capsys, "release", "0", code=2
    )
    assert f"GPU 7 of {HOST} was never handed out: sparknet gpus status" in said(
        capsys, "release", f"{HOST}:7", code=1
    )


def test_a_server_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = said(capsys, "status", "--redis", f"redis://:secret-word@127.0.0.1:{port}", code=1)
    assert f"127.0.0.1:{port}" in told
    assert "secret-word" not in told


def test_help_is_quick_and_whole() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparknet.cli.main", "gpus", "--help"], capture_output=True, text=True, check=True
    )
    assert all(word in done.stdout for word in ("list", "status", "release"))
