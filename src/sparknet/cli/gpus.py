"""`sparknet gpus`: which GPUs this host has, who has them, and freeing what a dead owner left."""

import argparse
import socket

from sparknet.config import Cluster
from sparknet.errors import DataError, UsageError
from sparknet.reporting.table import print_facts
from sparknet.spark.devices.binding import leases_of, redis_url
from sparknet.spark.devices.file_leases import FileLeases
from sparknet.spark.devices.gpus import host_gpus
from sparknet.spark.devices.lease import Held, Leases
from sparknet.spark.devices.redis_leases import RedisLeases

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Do the action that was asked for."""
    match arguments.action:
        case "list":
            return _list()
        case "status":
            return _status(arguments)
        case _:
            return _release(arguments)


def _list() -> int:
    found = host_gpus()
    if not found:
        print(f"{socket.gethostname()} has no GPU, or no NVIDIA driver (nvidia-smi) to tell of one.")
        return 0
    print_facts((f"GPU {gpu.index}", f"{gpu.name}, {gpu.memory}, driver {gpu.driver}") for gpu in found)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    held = _held(_leases(arguments), arguments.host)
    if not held:
        print("No GPU was ever handed out.")
        return 0
    print_facts((f"GPU {one.gpu} of {one.host}", _told(one)) for one in held)
    return 0


def _release(arguments: argparse.Namespace) -> int:
    leases = _leases(arguments)
    host, colon, gpu = arguments.gpu.partition(":")
    if not colon or not host or not gpu:
        raise UsageError(f"{arguments.gpu!r} names no GPU: give HOST:GPU as `sparknet gpus status` shows them")
    found = next((one for one in leases.held(host) if one.gpu == gpu), None)
    if found is None:
        raise DataError(f"GPU {gpu} of {host} was never handed out: sparknet gpus status shows those that were")
    if found.alive and not arguments.force:
        raise DataError(
            f"{found}, which is alive: what it trains would go on, and share the GPU with the next one: end it, or "
            "give --force"
        )
    leases.free(host, gpu)
    print(f"GPU {gpu} of {host} is free.")
    return 0


def _leases(arguments: argparse.Namespace) -> Leases:
    cluster = Cluster(redis=arguments.redis)
    if not redis_url(cluster):
        return FileLeases()
    leases = leases_of(cluster)
    assert isinstance(leases, RedisLeases), "a URL is given"
    return leases


def _held(leases: Leases, host: str) -> list[Held]:
    if host:
        return leases.held(host)
    hosts = leases.hosts() if isinstance(leases, RedisLeases) else [socket.gethostname()]
    return [one for name in hosts for one in leases.held(name)]


def _told(one: Held) -> str:
    return f"{one.holder}, for {one.seconds:,.0f} s" if one.alive else "free"
