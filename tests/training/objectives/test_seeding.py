"""What nets that are code draw from."""

import random

import numpy as np
import torch

from sparknet.training.objectives.seeding import drawing_from, seed_draws


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_one_seed_is_one_sequence() -> None:
    with torch.random.fork_rng(devices=[]):
        seed_draws(2**40 + 5)
        first = draws()
        seed_draws(2**40 + 5)
        assert draws() == first
        seed_draws(6)
        assert all(one != other for one, other in zip(draws(), first, strict=True))


def test_what_is_drawn_within_leaves_no_trace() -> None:
    with torch.random.fork_rng(devices=[]):
        seed_draws(1)
        expected = draws()
        seed_draws(1)
        with drawing_from(7):
            within = draws()
        assert draws() == expected
        with drawing_from(7):
            assert draws() == within
