"""Nets over vectors that a worker can import, where its PYTHONPATH leads here."""

import os
from pathlib import Path

from torch import nn

__all__ = ["let_workers_import", "linear"]


def let_workers_import() -> None:
    """Before a session is opened: its workers find the modules beside this one."""
    here = str(Path(__file__).parent)
    inherited = os.environ.get("PYTHONPATH", "")
    if here not in inherited.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, inherited]))


def linear(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Linear(input_shape[0], classes)
