"""A user's program over `sparknet.ml` in every kind of session, each in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from connect_server import ConnectServer
from netlab import Cluster, Netlab, reason_against

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
    assert done.returncode == 0, done.stderr[-3000:]
    return failures_in(done.stdout)


def failures_in(told):
    found = [json.loads(line) for line in told.splitlines() if line.startswith('{"check"')]
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


ON_HOSTS = """
import os, runpy, sys
url, support, program, directory = sys.argv[1:]
os.environ["SPARK_MASTER_URL"] = url
sys.path.insert(0, support)
sys.argv = [program, directory]
runpy.run_path(program, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(bool(reason_against()), reason=reason_against() or "hosts can be made")
def test_everything_on_three_hosts_that_share_no_temporary_files():
    # Spark's tasks write what is saved, and need a directory that all see; everything else is each host's own.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as shared, Netlab(3, private=[Path("/tmp")]) as lab:
        cluster = Cluster(lab, Path(shared), {2: 1, 3: 1})
        told = cluster.drive(ON_HOSTS, cluster.url, str(SUPPORT), str(PROGRAM), shared, timeout=1700)
        assert_all_well(failures_in(told), 11)
