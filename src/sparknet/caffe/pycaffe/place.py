"""Which of how many replicas this process is, what it draws from, and what pycaffe says of devices."""

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = [
    "drawing_alone",
    "drawing_from",
    "multiprocess",
    "set_device",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_place",
    "set_random_seed",
    "solver_count",
    "solver_rank",
]

_place = {"rank": 0, "count": 1}


def set_place(rank: int, count: int) -> None:
    """Say which replica this process is, of how many; before its nets are built."""
    _place.update(rank=rank, count=count)


def solver_rank() -> int:
    """The number of this replica, from 0: a data layer that reads in order begins there."""
    return _place["rank"]


def solver_count() -> int:
    """How many replicas there are, each in a process of its own."""
    return _place["count"]


def multiprocess() -> bool:
    """Whether there are several."""
    return solver_count() > 1


def set_random_seed(seed: int) -> None:
    """Seed what a layer may draw from: Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


@contextmanager
def drawing_from(seed: int) -> Generator[None]:
    """Draw from this seed on the CPU, and afterwards go on as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    # This generator alone: torch.manual_seed would also reseed GPUs, which fork_rng does not restore here.
    with torch.random.fork_rng(devices=[]):
        set_random_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def drawing_alone() -> Generator[None]:
    """Where there are several replicas that draw alike, let this one draw numbers of its own."""
    if not multiprocess():
        yield
        return
    # A look at what torch would draw next: drawn in earnest, all that is filled later would differ from the weights
    # that one process begins with.
    with torch.random.fork_rng(devices=[]):
        shared = int(torch.randint(2**31, ()))
    with drawing_from(shared + solver_rank()):
        yield


# Layers that start processes of their own say this there. What a replica computes on is not theirs to choose, and
# a Python layer computes where numpy does.
def set_mode_cpu() -> None:
    """Without effect."""


def set_mode_gpu() -> None:
    """Without effect."""


def set_device(device: int) -> None:
    """Without effect."""
