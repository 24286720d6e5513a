"""What is wrong with the wish for GPUs, found before the workers' job begins."""

import json
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from pyspark.sql import SparkSession
from pyspark.sql.utils import is_remote

from sparknet.config import RunConfig
from sparknet.errors import ClusterError, ConfigError
from sparknet.spark.devices.binding import leases_of, redis_url, torch_has_cuda
from sparknet.spark.devices.gpus import usable_gpus, visible_devices
from sparknet.spark.devices.redis_leases import RedisLeases
from sparknet.spark.jobs.error_translation import spark_errors
from sparknet.spark.jobs.jobs import TaggedJob

__all__ = ["check_devices", "check_this_machine"]

_ASK_SECONDS = 3.0


def check_devices(config: RunConfig, spark: SparkSession) -> None:
    """Refuse what would make workers wait for ever, or fail one after the other.

    Args:
        config: of the run.
        spark: its session.

    Raises:
        ConfigError: more GPU workers than GPUs, a build of torch without CUDA, no GPU at all, or Spark is to give
            some and was not told to have any, or its workers have none.
        ClusterError: Redis does not answer, or no host with as many GPUs as are asked for comes.
        MissingDependency: its package is not installed.
    """
    cluster = config.cluster
    if cluster.device == "cpu":
        return
    # What a worker would find out after a minute: that nobody is there to be asked.
    if cluster.leases == "redis" or (cluster.leases == "auto" and redis_url(cluster)):
        leases = leases_of(cluster)
        if isinstance(leases, RedisLeases):
            leases.ping()
    _check_resources(config, spark)
    if _is_local(spark):
        check_this_machine(config)


def check_this_machine(config: RunConfig) -> None:
    """Refuse GPUs that this machine has not, where the workers are on it too; no session is needed.

    Raises:
        ConfigError: torch was built without CUDA, or there are fewer GPUs than workers.
    """
    if config.cluster.device != "cuda":
        return
    gpus: Sequence[str] = usable_gpus(visible_devices())
    if not torch_has_cuda():
        raise ConfigError(
            "cluster.device is 'cuda' and torch here was built without CUDA: install a build of torch for CUDA, or "
            "set cluster.device='cpu'"
        )
    if len(gpus) < config.run.workers:
        raise ConfigError(
            f"cluster.device is 'cuda', run.workers is {config.run.workers} and this machine has {len(gpus)} GPUs "
            f"({', '.join(gpus) or 'none'}): each worker needs one of its own: set run.workers={len(gpus) or 1}"
            + ("" if gpus else ", or cluster.device='cpu'")
        )


def _check_resources(config: RunConfig, spark: SparkSession) -> None:
    task = spark.conf.get("spark.task.resource.gpu.amount", "") or ""
    executor = spark.conf.get("spark.executor.resource.gpu.amount", "") or ""
    if config.cluster.leases == "spark" and not (task and executor):
        raise ConfigError(
            "cluster.leases is 'spark' and Spark was not told of GPUs: set spark.executor.resource.gpu.amount and "
            "spark.task.resource.gpu.amount where the session is made, or cluster.leases='file'"
        )
    if task and executor and float(task) > float(executor):
        raise ConfigError(
            f"spark.task.resource.gpu.amount is {task} and spark.executor.resource.gpu.amount {executor}; no "
            "executor could ever run a task: raise the executor's"
        )
    if executor and not _is_local(spark):
        _check_offers(spark, int(executor))
        _check_executors(spark, int(executor), config.cluster.start_seconds)


def _check_offers(spark: SparkSession, wanted: int) -> None:
    """Ask a standalone master what its workers offer; it tells nobody that an application waits for more."""
    master = spark.conf.get("spark.master", "") or ""
    if not master.startswith("spark://"):
        return
    host = urlsplit(master.split(",")[0]).hostname
    pages = f"http://{host}:{spark.conf.get('spark.master.ui.port', '8080')}/json/"
    try:
        with urllib.request.urlopen(pages, timeout=_ASK_SECONDS) as answer:
            state: dict[str, Any] = json.load(answer)
        workers = [worker for worker in state["workers"] if worker["state"] == "ALIVE"]
        offered = {
            worker["id"]: len(worker["resources"].get("gpu", {"addresses": []})["addresses"]) for worker in workers
        }
    except (OSError, ValueError, KeyError, TypeError):
        # Its pages may be elsewhere or closed: then only waiting tells.
        return
    if max(offered.values(), default=0) < wanted:
        told = ", ".join(f"{name}: {count}" for name, count in offered.items()) or "there are none"
        raise ConfigError(
            f"spark.executor.resource.gpu.amount is {wanted}, and no worker of {master} offers so many GPUs "
            f"({told}); the application would wait for ever: start workers with spark.worker.resource.gpu.amount "
            "and a discovery script, or ask for fewer"
        )


def _check_executors(spark: SparkSession, wanted: int, patience_seconds: float) -> None:
    """Wait for the first task: a manager that has no such host is silent, and a job would wait for ever."""
    job = TaggedJob(spark, spark.range(0, 1, 1, 1).collect)
    try:
        if not job.join(patience_seconds):
            raise ClusterError(
                f"no executor came in {patience_seconds:g} s; each must have {wanted} GPUs "
                "(spark.executor.resource.gpu.amount), and free cores and memory: see to it that hosts offer them, "
                "ask for less, or raise cluster.start_seconds"
            )
    finally:
        job.give_up()
    with spark_errors("waiting for an executor"):
        job.result()


def _is_local(spark: SparkSession) -> bool:
    # A server's workers are where the server is.
    return not is_remote() and (spark.conf.get("spark.master", "") or "").startswith("local")
