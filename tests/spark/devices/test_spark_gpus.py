"""GPUs that Spark hands out: a standalone cluster whose workers tell of GPUs that nobody has built in."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyspark import TaskContext
from pyspark.sql import SparkSession

from digits import open_test_session
from sparknet.config import Cluster, Data, Net, Run, RunConfig
from sparknet.errors import ClusterError, ConfigError
from sparknet.spark.devices import preflight
from sparknet.spark.devices.preflight import check_devices
from sparknet.spark.jobs.jobs import collect_reports, numbered
from standalone import Standalone

pytestmark = pytest.mark.spark

PATIENCE_SECONDS = 60.0
ONE_GPU = {"spark.executor.resource.gpu.amount": "1", "spark.task.resource.gpu.amount": "1"}


def config_of(**cluster) -> RunConfig:
    return RunConfig(
        run=Run(rounds=1, workers=2),
        data=Data(source="digits", validation_fraction=0.2),
        net=Net(name="digits_cnn"),
        cluster=Cluster(**cluster),
    )


@contextmanager
def session_on(cluster: Standalone, **settings: str) -> Iterator[SparkSession]:
    session = open_test_session(
        cluster.url,
        **{
            "spark.executor.memory": "512m",
            "spark.executor.cores": "1",
            "spark.master.ui.port": cluster.ui.rpartition(":")[2],
            **settings,
        },
    )
    try:
        yield session
    finally:
        session.stop()


def bind(meeting: str) -> Callable[[Iterator[object]], Iterator[dict[str, object]]]:
    """A task that binds its GPU and stays until its neighbour has one too; it travels by value."""
    patience = PATIENCE_SECONDS

    def task(batches: Iterator[object]) -> Iterator[dict[str, object]]:
        from sparknet.spark.devices import binding

        # All but the card: what a child of this process sees is what CUDA would.
        binding.torch_has_cuda = lambda: True
        context = TaskContext.get()
        assert context is not None
        slot = context.partitionId()
        for _ in batches:
            with binding.bound_device(
                Cluster(device="cuda", leases="auto"), host="here", holder=f"w{slot}"
            ) as bound:
                command = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
                seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
                (Path(meeting) / str(slot)).touch()
                until = time.monotonic() + patience
                while len(list(Path(meeting).iterdir())) < 2 and time.monotonic() < until:
                    time.sleep(0.05)
                both = len(list(Path(meeting).iterdir())) == 2
                yield {"seen": seen, "shown": bound.shown, "device": str(bound.device), "both": both}

    return task


@pytest.mark.slow
def test_each_worker_has_the_address_that_spark_gave_it(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    # Workers of one address each; the addresses say nothing of the order in which tasks come.
    with (
        Standalone(tmp_path, workers=[1, 1], gpus=[["3"], ["1"]]) as cluster,
        session_on(cluster, **ONE_GPU) as spark,
    ):
        check_devices(config_of(leases="spark"), spark)
        reports = collect_reports(numbered(spark, 2, tasks=2), bind(str(meeting)), doing="binding")
        found = [report.values for report in reports]
    assert sorted(one["seen"] for one in found) == ["1", "3"]
    assert all(one["both"] for one in found), "both held one at the same time"
    assert all(one["shown"] == f"GPU {one['seen']} of here" and one["device"] == "cuda:0" for one in found)


def closed(*_: object, **__: object) -> None:
    raise OSError("the pages are closed")


def test_gpus_that_no_worker_offers_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Standalone(tmp_path, workers=[1]) as cluster, session_on(cluster, **ONE_GPU) as spark:
        began = time.monotonic()
        with pytest.raises(
            ConfigError,
            match=r"gpu\.amount is 1, and no worker of spark://127\.0\.0\.1:\d+ offers so many GPUs "
            r"\(worker-\S+: 0\); the application would wait for ever: start workers with",
        ):
            check_devices(config_of(), spark)
        assert time.monotonic() - began < 20
        # Where the master's pages are not to be had, only waiting tells.
        monkeypatch.setattr(preflight.urllib.request, "urlopen", closed)
        with pytest.raises(ClusterError, match=r"no executor came in 0\.5 s; each must have 1 GPUs"):
            check_devices(config_of(start_seconds=0.5), spark)
