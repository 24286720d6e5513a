"""The device of a worker: a GPU of its own where it can have one, for as long as it lives."""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from sparknet.config import Cluster
from sparknet.errors import ClusterError, ConfigError
from sparknet.spark.devices.file_leases import FileLeases
from sparknet.spark.devices.gpus import usable_gpus
from sparknet.spark.devices.lease import Lease, Leases
from sparknet.spark.devices.redis_leases import RedisLeases
from sparknet.spark.devices.spark_leases import spark_gpus, take_spark_gpu

__all__ = ["Bound", "bound_device", "leases_of", "redis_url", "torch_has_cuda"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_before: list[str | None] = []
"""What the variable was before this process bound its first device: Spark uses a Python worker again, and the next
task must see all that the first one saw."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Bound:
    """What a worker trains on."""

    device: torch.device
    shown: str
    """For people: `cpu`, or which GPU it is on its host."""
    valid: Callable[[], bool] = lambda: True
    """Whether it may still be used."""


@contextmanager
def bound_device(cluster: Cluster, *, host: str, holder: str) -> Generator[Bound]:
    """Give this process a device; call it before torch looks for one.

    Args:
        cluster: which device, and who hands GPUs out.
        host: this host's name.
        holder: who takes it, for people.

    Raises:
        ConfigError: a GPU is wanted where there is none, or torch cannot use one.
        ClusterError: all GPUs are taken; or this process has bound another one, which a new process has not.
    """
    visible = _visible_before()
    gpus = _gpus_of(host, visible)
    if cluster.device == "cpu" or (cluster.device == "auto" and not (gpus and torch_has_cuda())):
        yield Bound(device=torch.device("cpu"), shown="cpu")
        return
    _require_gpu(cluster, gpus, host)
    lease = _lease(cluster, gpus, host=host, holder=holder)
    if lease is None:
        yield Bound(device=torch.device("cpu"), shown=f"cpu, since all GPUs of {host} are taken")
        return
    try:
        # By its name among all of the host: within the process it is then the only one, and number 0.
        _see_only(lease.gpu)
        yield Bound(device=torch.device("cuda:0"), shown=f"GPU {lease.gpu} of {host}", valid=lambda: lease.valid)
    finally:
        lease.release()


def leases_of(cluster: Cluster) -> Leases | Literal["spark"]:
    """Who hands GPUs out: `spark` stands for Spark, which has done so when a task begins.

    Raises:
        MissingDependency: Redis is asked for and its package is not installed.
        ConfigError: `cluster.leases` is redis, and no URL is given.
    """
    url = redis_url(cluster)
    if cluster.leases == "redis" or (cluster.leases == "auto" and url):
        if not url:
            raise ConfigError(
                "cluster.leases is 'redis' and no server is named: set cluster.redis to redis://HOST:6379, or the "
                "environment variable Redis"
            )
        return RedisLeases(url, lease_seconds=cluster.lease_seconds)
    if cluster.leases == "spark" or (cluster.leases == "auto" and spark_gpus()):
        return "spark"
    return FileLeases()


def redis_url(cluster: Cluster) -> str:
    """URL of the Redis server, from the configuration or, as the original had it, from the environment."""
    return cluster.redis or os.environ.get("Redis", "")  # noqa: SIM112 - the original's spelling


def torch_has_cuda() -> bool:
    """Whether torch was built for CUDA; no device is touched."""
    return torch.version.cuda is not None


def _gpus_of(host: str, visible: str | None) -> tuple[str, ...]:
    """GPUs that this process may take; of the original's `GPU_HOSTS` those hosts alone have any."""
    named = os.environ.get("GPU_HOSTS", "")
    if named and host not in {one.strip() for one in named.split(",")}:
        return ()
    return spark_gpus() or usable_gpus(visible)


def _require_gpu(cluster: Cluster, gpus: Sequence[str], host: str) -> None:
    if not torch_has_cuda():
        raise ConfigError(
            f"cluster.device is {cluster.device!r} and torch {torch.__version__} on {host} was built without CUDA: "
            "install a build of torch for CUDA there, or set cluster.device='cpu'"
        )
    if not gpus:
        raise ConfigError(
            f"cluster.device is {cluster.device!r} and {host} has no GPU that this process may use (nvidia-smi, "
            f"{_VISIBLE}, GPU_HOSTS): run on hosts with GPUs, or set cluster.device='auto'"
        )


def _lease(cluster: Cluster, gpus: Sequence[str], *, host: str, holder: str) -> Lease | None:
    """A GPU; None where a CPU will do and all are taken."""
    leases = leases_of(cluster)
    if leases == "spark":
        lease = take_spark_gpu()
        if lease is None:
            raise ConfigError(
                "cluster.leases is 'spark' and Spark has given this task no GPU: set "
                "spark.task.resource.gpu.amount and spark.executor.resource.gpu.amount, or cluster.leases='file'"
            )
        return lease
    wanted = cluster.device == "cuda"
    try:
        return leases.acquire(host, gpus, holder=holder, wait_seconds=cluster.start_seconds / 2 if wanted else 0)
    except ClusterError:
        if wanted:
            raise
        return None


def _visible_before() -> str | None:
    if not _before:
        _before.append(os.environ.get(_VISIBLE))
    return _before[0]


def _see_only(gpu: str) -> None:
    if torch.cuda.is_initialized() and os.environ.get(_VISIBLE) != gpu:
        # What CUDA has seen when it began it sees for ever. The next attempt is in a new process.
        raise ClusterError(
            f"this Python process has used GPU {os.environ.get(_VISIBLE)} before and is given GPU {gpu} now; a new "
            "process will be"
        )
    os.environ[_VISIBLE] = gpu
    # As nvidia-smi and Spark's discovery scripts count; by itself CUDA counts the fastest first.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
