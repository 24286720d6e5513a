"""Workers of a Spark Connect server: one that hangs is replaced, whatever the server allows a task."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from connect_server import ConnectServer

pytestmark = [pytest.mark.spark, pytest.mark.timeout(600)]

SUPPORT = Path(__file__).parents[2] / "support"


def test_hung_and_killed_workers_are_replaced(tmp_path):
    (tmp_path / "checks").mkdir()
    with ConnectServer(tmp_path, master="local[2]") as server:
        done = subprocess.run(
            [sys.executable, SUPPORT / "ml_program.py", tmp_path / "checks", "hung_worker", "killed_worker"],
            env={**os.environ, "PYTHONPATH": str(SUPPORT), "SPARK_REMOTE": server.url},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    assert [one["check"] for one in found] == ["hung_worker", "killed_worker"], done.stderr[-3000:]
    assert not [one["failure"] for one in found if one["failure"]], found
