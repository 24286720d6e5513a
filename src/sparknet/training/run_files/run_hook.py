"""What may be done beside a run's loop: a Protocol, so that the loop need not know who does it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from sparknet.training.objectives.objective import Objective
from sparknet.training.run_files.checkpoint import Checkpoints, Saved

__all__ = ["RunHook", "SideJob", "Tell"]

Tell = Callable[..., None]
"""Tells an event: its name, and its fields as keywords."""


SideJob = Callable[[], Mapping[str, object]]
"""Work on a checkpoint, which is kept until that is done, on a thread of its own, where nothing but the job may be
touched; returns the event to tell, its name under `event`. What it raises fails the run."""


class RunHook(Protocol):
    """Takes part in a run on the driver; all but the work of its jobs is done on the thread that tells events."""

    def begin(self, objective: Objective, checkpoints: Checkpoints, tell: Tell) -> Saved | None:
        """Write the checkpoint that a new run begins from; None: it begins with the net's initial weights.

        Raises:
            SparkNetError: it cannot.
        """
        ...

    def start(self, objective: Objective, run_dir: Path, rounds: int) -> None:
        """Get ready for a run that ends after so many rounds.

        Raises:
            SparkNetError: what will be needed cannot be made.
        """
        ...

    def on_checkpoint(self, round: int, iteration: int, directory: Path) -> SideJob | None:
        """What to do with a checkpoint that is complete, of a round that ended at an iteration; None: nothing."""
        ...
