"""What commands that run one Spark job and train nothing tell it."""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sparknet.config import RunConfig
from sparknet.config.files import config_from
from sparknet.errors import UsageError

__all__ = ["job_config"]

_TASK_FAILURES = 4
"""A task that fails so often ends the job: Spark's own default, for rows that are at fault stay so."""


def job_config(
    arguments: argparse.Namespace, *, name: str, data: Mapping[str, Any], sections: Sequence[str]
) -> RunConfig:
    """The configuration of a command with `--workers`, `--master` and `--set`.

    Args:
        arguments: the command line.
        name: the job's.
        data: the table of that section.
        sections: those that `--set` may change.

    Raises:
        UsageError: a setting is of another section, or workers are counted for a cluster.
        ConfigError: a setting is at fault.
    """
    other = next((one for one in arguments.set if one.partition(".")[0].strip() not in sections), None)
    if other is not None:
        known = " and ".join(f"{section}.*" for section in sections)
        raise UsageError(f"--set {other}: only {known} settings concern this command: leave it out")
    cores = arguments.workers or len(os.sched_getaffinity(0))
    tables = {
        "run": {"name": name, "workers": cores, "rounds": 1},
        "data": data,
        "net": {"name": "digits_cnn"},  # nothing is trained: any will do
        "cluster": {"master": arguments.master or "", "task_failures": _TASK_FAILURES},
    }
    config = config_from(tables, arguments.set)
    if arguments.workers and config.cluster.master:
        raise UsageError(
            f"--workers {cores} and the master {config.cluster.master} are given; --workers counts cores of the "
            "embedded session only: leave it out"
        )
    return config
