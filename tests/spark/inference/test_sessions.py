"""Predictions in sessions that are not local, each in a process of its own: a process has one kind of session."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SUPPORT = Path(__file__).parents[2] / "support"
pytestmark = [pytest.mark.spark, pytest.mark.slow]


@pytest.mark.parametrize("kind", ["connect", "cluster"])
def test_the_model_reaches_the_workers_of_any_session(kind):
    if kind == "connect" and importlib.util.find_spec("grpc_status") is None:
        pytest.skip("pyspark[connect] is not installed")
    done = subprocess.run(
        [sys.executable, SUPPORT / "other_sessions.py", kind],
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["remote"] == (kind == "connect")
    assert told["same"]
    np.testing.assert_allclose(told["found"][:8], told["expected"], rtol=1e-5, atol=1e-5)
    assert told["predictions"] == [*np.argmax(told["expected"], 1).tolist(), None]
    assert told["found"][8] is None
