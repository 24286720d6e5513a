"""What Caffe's files add to a run: where it begins, and snapshots beside its checkpoints."""

from collections.abc import Mapping
from pathlib import Path

from sparknet.caffe.solver.settings import SolverSettings
from sparknet.config import RunConfig
from sparknet.errors import ConfigError
from sparknet.training.caffe_runs.snapshots import CaffeSnapshots, begin, make_snapshots
from sparknet.training.objectives.caffe_objective import CaffeObjective
from sparknet.training.objectives.objective import Objective
from sparknet.training.run_files.checkpoint import Checkpoints, Saved
from sparknet.training.run_files.pretrained import begin_pretrained
from sparknet.training.run_files.run_hook import SideJob, Tell

__all__ = ["CaffeHook"]


class CaffeHook:
    """The `RunHook` of a run with a Caffe net, a Caffe solver or Caffe weights.

    Args:
        config: of the run, self-contained.
        settings: what its solver's file says; None where it has none.
    """

    def __init__(self, config: RunConfig, settings: SolverSettings | None) -> None:
        self._config = config
        self._settings = settings
        self._snapshots: CaffeSnapshots | None = None
        self._rounds = 0

    def begin(self, objective: Objective, checkpoints: Checkpoints, tell: Tell) -> Saved | None:
        """Begin with `net.weights` or `solver.snapshot`, where one is given."""
        given = self._config.solver.snapshot or self._config.net.weights
        if not given:
            return None
        if not isinstance(objective, CaffeObjective):
            return self._begin_module(given, objective, checkpoints, tell)
        net = self._config.net
        if net.weights_map or not net.weights_strict:
            raise ConfigError(
                f"net.weights_map is {net.weights_map} and net.weights_strict is {net.weights_strict}; a Caffe net "
                "takes the weights of the layers of the same names, whichever there are: leave both out"
            )
        saved, missing = begin(self._config, self._settings, objective, checkpoints)
        tell("note", message=f"begins with {given}")
        if missing:
            told = f"{given} has no weights for layers {', '.join(missing)}: they begin as their fillers make them"
            tell("note", level="warning", message=told)
        return saved

    def _begin_module(self, given: str, objective: Objective, checkpoints: Checkpoints, tell: Tell) -> Saved:
        if self._config.solver.snapshot or ".caffemodel" in given:
            raise ConfigError(
                f"net.weights or solver.snapshot is {given!r} and net {objective.name} is no Caffe net, so it "
                "has no layers of Caffe's names: leave it out, or set net.prototxt"
            )
        saved, told = begin_pretrained(self._config.net, objective, checkpoints)
        tell("note", message=f"begins with {given}")
        for line in told:
            tell("note", level="warning", message=line)
        return saved

    def start(self, objective: Objective, run_dir: Path, rounds: int) -> None:
        """Make the directory of the snapshots."""
        self._rounds = rounds
        # Before the training: a directory that cannot be made must not be found out at its end.
        if self._settings is not None and isinstance(objective, CaffeObjective):
            self._snapshots = make_snapshots(self._config, self._settings, objective, run_dir=run_dir)

    def on_checkpoint(self, round: int, iteration: int, directory: Path) -> SideJob | None:
        """Write it once more as Caffe's snapshot, where the solver wants one."""
        snapshots = self._snapshots
        if snapshots is None or not snapshots.due(round, iteration, last=round == self._rounds):
            return None

        def write() -> Mapping[str, object]:
            model, state = snapshots.write(iteration, directory)
            return {
                "event": "snapshot",
                "round": round,
                "iteration": iteration,
                "weights": str(model),
                "state": str(state),
            }

        return write
