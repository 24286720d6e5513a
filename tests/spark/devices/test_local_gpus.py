"""GPUs of one machine: lock files among the tasks of `local[4]`, and what is refused before a job begins."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyspark import TaskContext
from pyspark.sql import SparkSession

from digits import open_test_session
from fake_gpus import tell_of_gpus
from sparknet.config import Cluster, Data, Net, Run, RunConfig
from sparknet.errors import ClusterError, ConfigError
from sparknet.spark.devices import preflight
from sparknet.spark.devices.gpus import host_gpus
from sparknet.spark.devices.preflight import check_devices
from sparknet.spark.jobs.jobs import collect_reports, numbered

pytestmark = pytest.mark.spark

GPUS = 3
PATIENCE_SECONDS = 60.0
CONFIG = RunConfig(
    run=Run(rounds=1, workers=4),
    data=Data(source="digits", validation_fraction=0.2),
    net=Net(name="digits_cnn"),
)


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """A machine of three GPUs; Python workers inherit what tells of them."""
    with pytest.MonkeyPatch.context() as patch:
        tell_of_gpus(tmp_path_factory.mktemp("gpus"), patch, GPUS)
        host_gpus.cache_clear()
        # By Spark's own word too: a Java machine that is there already has the environment of its start.
        told = {f"spark.executorEnv.{name}": os.environ[name] for name in ("PATH", "TMPDIR")}
        session = open_test_session("local[4,4]", **told)
        yield session
        session.stop()
    host_gpus.cache_clear()


def bind(meeting: str, tasks: int) -> Callable[[Iterator[object]], Iterator[dict[str, object]]]:
    """A task that takes a device and keeps it until all others have one; it travels by value."""
    patience = PATIENCE_SECONDS

    def task(batches: Iterator[object]) -> Iterator[dict[str, object]]:
        from sparknet.spark.devices import binding

        binding.torch_has_cuda = lambda: True
        context = TaskContext.get()
        assert context is not None
        slot = context.partitionId()
        for _ in batches:
            with binding.bound_device(Cluster(), host="here", holder=f"worker {slot}") as bound:
                command = [sys.executable, "-c", "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))"]
                seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
                (Path(meeting) / str(slot)).touch()
                until = time.monotonic() + patience
                while len(list(Path(meeting).iterdir())) < tasks and time.monotonic() < until:
                    time.sleep(0.05)
                all_there = len(list(Path(meeting).iterdir())) == tasks
            yield {"seen": seen, "shown": bound.shown, "device": bound.device.type, "all": all_there}

    return task


@pytest.mark.parametrize("turn", [0, 1])
def test_tasks_never_share_a_gpu(spark: SparkSession, tmp_path: Path, turn: int) -> None:
    """Also those of the second job, in Python processes that have bound another GPU before."""
    reports = collect_reports(numbered(spark, 4, tasks=4), bind(str(tmp_path), 4), doing="binding")
    found = [report.values for report in reports]
    assert all(one["all"] for one in found)
    with_gpu = [one for one in found if one["device"] == "cuda"]
    assert sorted(one["seen"] for one in with_gpu) == ["0", "1", "2"]
    assert all(one["shown"] == f"GPU {one['seen']} of here" for one in with_gpu)
    (without,) = (one for one in found if one["device"] == "cpu")
    assert without["shown"] == "cpu, since all GPUs of here are taken"


def refused(spark: SparkSession, *, workers: int = 4, **cluster) -> str:
    config = replace(CONFIG, run=Run(rounds=1, workers=workers), cluster=Cluster(**cluster))
    with pytest.raises((ConfigError, ClusterError)) as raised:
        check_devices(config, spark)
    return str(raised.value)


def test_a_build_without_cuda(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "torch_has_cuda", lambda: False)
    assert refused(spark, device="cuda").startswith(
        "cluster.device is 'cuda' and torch here was built without CUDA: install"
    )


def test_more_workers_than_gpus(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "torch_has_cuda", lambda: True)
    assert refused(spark, device="cuda") == (
        "cluster.device is 'cuda', run.workers is 4 and this machine has 3 GPUs (0, 1, 2): each worker needs one "
        "of its own: set run.workers=3"
    )
    check_devices(replace(CONFIG, run=Run(rounds=1, workers=3), cluster=Cluster(device="cuda")), spark)
    # What is hidden from this process is not there.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert "this machine has 1 GPUs (1)" in refused(spark, device="cuda", workers=3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert refused(spark, device="cuda").endswith("set run.workers=1, or cluster.device='cpu'")


def test_a_cpu_needs_nothing(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "torch_has_cuda", lambda: False)
    check_devices(replace(CONFIG, cluster=Cluster(device="cpu", leases="spark")), spark)
    check_devices(CONFIG, spark)


def test_gpus_of_sparks_that_spark_was_not_told_of(spark: SparkSession) -> None:
    assert refused(spark, leases="spark").startswith(
        "cluster.leases is 'spark' and Spark was not told of GPUs: set"
    )


def test_a_redis_server_that_is_not_there(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"redis://:secret-word@127.0.0.1:{port}"
    told = refused(spark, leases="redis", redis=url)
    assert f"127.0.0.1:{port}" in told
    assert "secret-word" not in told
    # The original's users name it in the environment.
    monkeypatch.setenv("Redis", url)
    assert refused(spark) == told
    monkeypatch.delenv("Redis")
    assert "cluster.leases is 'redis' and no server is named" in refused(spark, leases="redis")
