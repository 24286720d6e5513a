"""What commands that run one Spark job and train nothing tell it."""

import argparse
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sparknet.config import Cluster, Data
from sparknet.config.files import sections_from
from sparknet.errors import UsageError

__all__ = ["ClusterAlone", "DataAndCluster", "count_workers", "job_config"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterAlone:
    """What can be said of a job that reads no source."""

    cluster: Cluster


@dataclass(frozen=True, kw_only=True, slots=True)
class DataAndCluster:
    """What can be said of a job that reads a source."""

    data: Data
    cluster: Cluster


T = TypeVar("T", ClusterAlone, DataAndCluster)


def count_workers(arguments: argparse.Namespace) -> int:
    """Cores of the embedded session: as many as `--workers` says, else all that this process may use."""
    if arguments.workers:
        return int(arguments.workers)
    # Not `cpu_count`, which in a container counts the machine's; macOS has nothing else.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def job_config(kind: type[T], arguments: argparse.Namespace, tables: Mapping[str, Any] | None = None) -> T:
    """The configuration of a command with `--workers`, `--master` and `--set`.

    Args:
        kind: its sections, all of which `--set` may change.
        arguments: the command line.
        tables: what the sections beside `cluster` hold.

    Raises:
        UsageError: a setting is of another section, or workers are counted for a cluster.
        ConfigError: a setting is at fault.
    """
    sections = [field.name for field in dataclasses.fields(kind)]
    # Such sections exist in a run's configuration, so "unknown" would be the wrong word.
    other = next((one for one in arguments.set if one.partition(".")[0].strip() not in sections), None)
    if other is not None:
        known = " and ".join(f"{section}.*" for section in sections)
        raise UsageError(f"--set {other}: only {known} settings concern this command: leave it out")
    cluster = {"master": arguments.master or ""}
    config = sections_from(kind, {**(tables or {}), "cluster": cluster}, arguments.set)
    if arguments.workers and config.cluster.master:
        raise UsageError(
            f"--workers {arguments.workers} and the master {config.cluster.master} are given; --workers counts "
            "cores of the embedded session only: leave it out"
        )
    return config
