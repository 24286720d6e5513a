"""What a run can be told: one frozen dataclass per section of the TOML file.

Cross-field rules stand in each section's `__post_init__`, so that no invalid configuration can exist.
"""

from dataclasses import dataclass, field

from sparknet.config.rules import require
from sparknet.config.sections.cluster import Cluster
from sparknet.config.sections.data import Data
from sparknet.config.sections.net import Net
from sparknet.config.sections.objective import Objective
from sparknet.config.sections.run import Run
from sparknet.config.sections.solver import Solver
from sparknet.config.sections.sync import Sync

__all__ = ["RunConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything about a run; `write_config` puts it into the run directory as resolved."""

    data: Data
    net: Net
    run: Run
    objective: Objective = field(default_factory=Objective)
    solver: Solver = field(default_factory=Solver)
    sync: Sync = field(default_factory=Sync)
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        require(
            not (self.net.weights and self.solver.snapshot),
            "net.weights and solver.snapshot",
            (self.net.weights, self.solver.snapshot),
            "a snapshot brings its own weights: give one of the two",
        )
        if self.data.validation == "none":
            for key, judged in (("early_stop", self.run.early_stop is not None), ("keep", self.run.keep == "best")):
                require(
                    not judged,
                    f"run.{key} and data.validation",
                    (getattr(self.run, key), "none"),
                    f"no rows are held out to judge by: hold some out, or leave run.{key} out",
                )
