"""The nets of a Python worker: built once, and kept for the tasks that follow in the same process."""

import os
import socket
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from sparknet.config import Cluster
from sparknet.spark.devices.binding import bound_device
from sparknet.spark.inference.model_file import open_file
from sparknet.training.objectives.build_objective import build_objective, build_test_objective
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.saved_model import Description
from sparknet.training.worker.device_feed import DeviceFeed

__all__ = ["Net", "NetPlan", "net_of"]

_MOST_NETS = 2
"""A query may compare two models; more would fill memory that nobody counts."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class NetPlan:
    """What it takes to build a net; it travels to the workers."""

    key: str
    """Equal for equal nets."""
    description: Description
    file: str
    """Of its tensors, as `hand_out` named it."""
    test_net_only: bool
    """It is a Caffe file's TEST net."""
    cluster: Cluster
    """What concerns devices and threads."""
    code: Mapping[str, Any]
    """By reference nets and losses that are objects."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Net:
    """A net on its device."""

    objective: Objective
    feed: DeviceFeed
    """Takes rows there."""


_nets: "OrderedDict[str, Net]" = OrderedDict()
"""By key, the last used one last."""
_device: list[torch.device] = []
"""Of this process: what CUDA has seen when it began it sees for ever."""
_held = ExitStack()
"""Its lease, which ends with the process: Spark ends workers that have been idle for a minute."""


def net_of(plan: NetPlan) -> Net:
    """The net of a plan, built if this process has not got it.

    Raises:
        CheckpointError: its tensors are missing or do not fit.
        NetError: it cannot be built here.
        ConfigError, ClusterError: there is no such device as is asked for.
    """
    # Spark gives Python workers one thread of OpenMP for each core of a task.
    torch.set_num_threads(plan.cluster.threads_per_worker)
    if plan.key in _nets:
        _nets.move_to_end(plan.key)
        return _nets[plan.key]
    while len(_nets) >= _MOST_NETS:
        _nets.popitem(last=False)
    # Before torch looks for devices.
    device = _bound(plan.cluster)
    tensors = open_file(plan.file)
    objective = _build(plan)
    tensors.fill(objective.module)
    # A prediction is of the row, and not of chance: nothing is mirrored, though Caffe's data layers do it in tests.
    chain = {name: replace(one, mirror=False) for name, one in tensors.chain.items()}
    _nets[plan.key] = Net(objective=objective.to(device), feed=DeviceFeed(chain, device))
    return _nets[plan.key]


def _bound(cluster: Cluster) -> torch.device:
    if not _device:
        holder = f"inference pid {os.getpid()}"
        bound = _held.enter_context(bound_device(cluster, host=socket.gethostname(), holder=holder))
        _device.append(bound.device)
    return torch.device("cpu") if cluster.device == "cpu" else _device[0]


def _build(plan: NetPlan) -> Objective:
    recipe = Recipe.read(plan.description.net, objective=plan.description.objective, code=plan.code)
    rows, data = plan.description.rows, plan.description.data
    if plan.test_net_only:
        return build_test_objective(recipe, rows, data=data, measured=False)
    # Batch and seed play no part: nothing is trained, and every weight is about to be replaced.
    return build_objective(recipe, rows, batch_size=1, seed=0, data=data)
