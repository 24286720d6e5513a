"""Spark, devices, deadlines and security."""

from dataclasses import dataclass
from typing import Literal

from sparknet.config.rules import all_finite, at_least, require

__all__ = ["Cluster"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Spark, deadlines and security."""

    master: str = ""
    """Spark master URL; not given: what spark-submit or Spark's own files say, else one embedded session with a
    core per worker. Where both say one, they must agree."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where each replica is trained: a GPU of its own where the worker can have one, the CPU, or a GPU in any
    case."""
    leases: Literal["auto", "spark", "file", "redis"] = "auto"
    """Who hands out GPUs: Spark's resource scheduling, a lock file for each GPU on its host, or Redis. auto: Redis
    where `redis` is given, else Spark where it has resources to give, else files."""
    redis: str = ""
    """URL of the Redis server that hands out GPUs, `redis://HOST:6379`; not given: the environment variable
    `Redis`."""
    lease_seconds: float = 30.0
    """Redis: a lease that was not renewed for so long is free again; it is renewed at a third of this."""
    driver_host: str = ""
    """Name or address of this machine that workers can reach; not given: the first that all of them reach, of
    Spark's own, those that lead to the cluster, and those of the interfaces."""
    driver_port: int = 0
    """Port of the run's service, and the next one is the store's; 0: free ones. For firewalls."""
    heartbeat_timeout_seconds: float = 2.0
    """Silence after which a worker counts as dead and the others go on."""
    hang_seconds: float = 600.0
    """Without progress for so long a worker is replaced although it beats; longer than any step or upload."""
    grace_seconds: float = 30.0
    """How long the others wait for a straggler after the median worker is ready."""
    start_seconds: float = 300.0
    """How long the first round waits for all workers before it makes do with `run.min_workers`."""
    exchange_seconds: float = 120.0
    """Bound on one all-reduce over the network."""
    task_failures: int = 16
    """With so many failures in a row, and no committed round in between, of one worker the run fails. It is begun
    again by the driver each time, whatever `spark.task.maxFailures` says."""
    threads_per_worker: int = 1
    """Threads that a worker's tensor operations may use."""
    spark_log_level: Literal["OFF", "FATAL", "ERROR", "WARN", "INFO"] = "WARN"
    """What Spark itself writes to `spark.log` in the run directory, for sessions opened here."""
    tls_certificate: str = ""
    """PEM file: the driver service's certificate (chain), also what the workers trust."""
    tls_key: str = ""
    """PEM file: the certificate's private key; it never leaves the driver."""

    def __post_init__(self) -> None:
        all_finite("cluster", self)
        for key in (
            "heartbeat_timeout_seconds",
            "hang_seconds",
            "grace_seconds",
            "start_seconds",
            "exchange_seconds",
            "lease_seconds",
        ):
            value: float = getattr(self, key)
            require(value > 0, f"cluster.{key}", value, "it must be more than 0 seconds")
        require(
            0 <= self.driver_port < 65535,
            "cluster.driver_port",
            self.driver_port,
            "it must be 0 or a port below 65535, since the next one is used too",
        )
        at_least("cluster.task_failures", self.task_failures, 1)
        at_least("cluster.threads_per_worker", self.threads_per_worker, 1)
        # One of them alone would leave the service without TLS, against what was plainly wanted.
        require(
            bool(self.tls_certificate) == bool(self.tls_key),
            "cluster.tls_certificate and cluster.tls_key",
            (self.tls_certificate, self.tls_key),
            "TLS needs both: set the other one too",
        )
