"""What nets that are code learn of the run: a seed for all that they may draw from, and which replica they are."""

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch

from sparknet.caffe.pycaffe.place import set_place

__all__ = ["drawing_from", "seed_draws", "take_place"]


def seed_draws(seed: int) -> None:
    """Let torch, numpy and Python draw from this seed on, on every device."""
    torch.manual_seed(seed)
    # A net of the user's may draw from them: Spark's Python workers are forks of one process, and would all draw
    # the same.
    random.seed(seed)
    np.random.seed(seed % 2**32)


def take_place(slot: int, *, workers: int) -> None:
    """Be this replica of so many, as Python layers ask pycaffe; before the net is built."""
    set_place(slot, workers)


@contextmanager
def drawing_from(seed: int) -> Generator[None]:
    """Draw from this seed on the CPU, and afterwards go on as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # This generator alone: torch.manual_seed would also reseed GPUs, which fork_rng does not restore here.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
