"""What nets that are code learn of the run: a seed for all that they may draw from, and which replica they are."""

import torch

from sparknet.caffe.pycaffe.place import drawing_from, set_place, set_random_seed

__all__ = ["drawing_from", "seed_draws", "take_place"]


def seed_draws(seed: int) -> None:
    """Let torch, numpy and Python draw from this seed on, on every device."""
    torch.manual_seed(seed)
    # A net of the user's may draw from them: Spark's Python workers are forks of one process, and would all draw
    # the same.
    set_random_seed(seed)


def take_place(slot: int, *, workers: int) -> None:
    """Be this replica of so many, as Python layers ask pycaffe; before the net is built."""
    set_place(slot, workers)
