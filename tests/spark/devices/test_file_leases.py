"""Lock files: one process a GPU, freed by its death."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from places import REPOSITORY
from sparknet.errors import ClusterError
from sparknet.spark.devices.file_leases import FileLeases

PATIENCE_SECONDS = 60.0

OWNER = f"""
import sys
sys.path.insert(0, {str(REPOSITORY / "src")!r})
from pathlib import Path
from sparknet.spark.devices.file_leases import FileLeases
lease = FileLeases(Path(sys.argv[1])).acquire("here", ["0", "1"], holder="child", wait_seconds=30)
print(lease.gpu, lease.fence, flush=True)
sys.stdin.read()
"""


def child(directory: Path) -> tuple[subprocess.Popen[str], str, int]:
    command = [sys.executable, "-c", OWNER, str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    gpu, fence = process.stdout.readline().split()
    return process, gpu, int(fence)


def test_processes_get_different_gpus_and_death_frees_them(tmp_path: Path) -> None:
    leases = FileLeases(tmp_path)
    owners = [child(tmp_path) for _ in range(2)]
    assert sorted(gpu for _, gpu, _ in owners) == ["0", "1"]
    held = leases.held("here")
    assert [(one.gpu, one.holder, one.alive) for one in held] == [("0", "child", True), ("1", "child", True)]
    with pytest.raises(ClusterError, match=r"all GPUs of here are taken: GPU 0 of here: child; GPU 1"):
        leases.acquire("here", ["0", "1"], holder="late", wait_seconds=0)
    killed, gpu, fence = owners[0]
    with pytest.raises(ClusterError, match=rf"locked by child \(process {killed.pid}\), which is running"):
        leases.free("here", gpu)
    killed.kill()
    killed.communicate()
    lease = leases.acquire("here", ["0", "1"], holder="next", wait_seconds=PATIENCE_SECONDS)
    assert (lease.gpu, lease.fence, lease.valid) == (gpu, fence + 1, True)
    lease.release()
    assert not lease.valid
    owners[1][0].communicate()
    assert [one.alive for one in leases.held("here")] == [False, False]


def test_who_waits_gets_the_first_that_is_free(tmp_path: Path) -> None:
    first, gpu, _ = child(tmp_path)
    second, _, _ = child(tmp_path)
    first.communicate()
    began = time.monotonic()
    lease = FileLeases(tmp_path).acquire("here", ["0", "1"], holder="me", wait_seconds=PATIENCE_SECONDS)
    assert lease.gpu == gpu
    assert time.monotonic() - began < PATIENCE_SECONDS
    lease.release()
    second.communicate()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match="lock files of the GPUs cannot be written"):
        FileLeases(tmp_path / "file" / "x").acquire("here", ["0"], holder="me", wait_seconds=0)
