"""What is wrong with the wish for GPUs, found before the workers' job begins."""

from collections.abc import Sequence

from pyspark.sql import SparkSession

from sparknet.config import RunConfig
from sparknet.errors import ConfigError
from sparknet.spark.devices.binding import leases_of, redis_url, torch_has_cuda
from sparknet.spark.devices.gpus import usable_gpus, visible_devices
from sparknet.spark.devices.redis_leases import RedisLeases

__all__ = ["check_devices"]


def check_devices(config: RunConfig, spark: SparkSession) -> None:
    """Refuse what would make workers wait for ever, or fail one after the other.

    Args:
        config: of the run.
        spark: its session.

    Raises:
        ConfigError: more GPU workers than GPUs, a build of torch without CUDA, no GPU at all, or Spark is to give
            some and was not told to have any.
        ClusterError: Redis does not answer.
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
    if cluster.device == "cuda" and _is_local(spark):
        _check_here(config, usable_gpus(visible_devices()))


def _check_here(config: RunConfig, gpus: Sequence[str]) -> None:
    """On this machine the workers will find what the driver finds."""
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


def _is_local(spark: SparkSession) -> bool:
    return (spark.conf.get("spark.master", "") or "").startswith("local")
