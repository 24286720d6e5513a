"""A user's program over `sparknet.ml` in every kind of session, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from connect_server import ConnectServer

SUPPORT = Path(__file__).parents[1] / "support"
PROGRAM = SUPPORT / "ml_program.py"
SAMPLE = ("fit_and_transform", "save_and_load", "pipeline")
pytestmark = pytest.mark.spark
all_checks = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(directory, *checks, **environment):
    """The checks that the program made, by name what failed."""
    directory.mkdir()
    done = subprocess.run(
        [sys.executable, PROGRAM, directory, *checks],
        env={**os.environ, "PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    assert found, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, done.stderr[-3000:]
    return {one["check"]: one["failure"] for one in found}


def assert_all_well(found, least):
    assert len(found) >= least
    failed = {name: failure for name, failure in found.items() if failure}
    assert not failed, "\n".join(f"{name}: {failure}" for name, failure in failed.items())


@pytest.mark.timeout(600)
def test_a_fit_over_connect(tmp_path):
    with ConnectServer(tmp_path, master="local[2]") as server:
        assert_all_well(run(tmp_path / "checks", *SAMPLE, SPARK_REMOTE=server.url), len(SAMPLE))


@pytest.mark.parametrize("checks", [pytest.param((), marks=all_checks)])
def test_everything_over_connect(tmp_path, checks):
    with ConnectServer(tmp_path, master="local[2]") as server:
        assert_all_well(run(tmp_path / "checks", *checks, SPARK_REMOTE=server.url), 11)


@pytest.mark.parametrize(
    "master", [pytest.param(one, marks=all_checks) for one in ("local[2]", "local-cluster[2,1,1024]")]
)
def test_everything_in_a_classic_session(tmp_path, master):
    assert_all_well(run(tmp_path / "checks", SPARK_MASTER_URL=master), 11)
