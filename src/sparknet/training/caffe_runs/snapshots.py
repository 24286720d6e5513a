"""Caffe's snapshots beside a run's checkpoints, and a run's beginning from Caffe's weights or snapshot.

So training moves between Caffe and this system in both directions: `P_iter_N.caffemodel` and `.solverstate` are
what Caffe itself would have written after N iterations.
"""

import dataclasses
import os
from pathlib import Path

from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.caffe.solver.caffe_solver import CaffeSolver
from sparknet.caffe.solver.named_files import is_directory
from sparknet.caffe.solver.policies import settled_step
from sparknet.caffe.solver.settings import SolverSettings
from sparknet.caffe.solver.solverstate import SavedState, read_state, write_state
from sparknet.caffe.solver.updates import CaffeOptimizer, parameter_groups
from sparknet.caffe.weights.caffemodel import LIMIT_BYTES
from sparknet.caffe.weights.trained import check_hdf5, load_listed
from sparknet.config import RunConfig
from sparknet.errors import CheckpointError, ConfigError
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import RunProgress
from sparknet.training.objectives.caffe_objective import CaffeObjective
from sparknet.training.run_files.checkpoint import INNER, WEIGHTS, Checkpoints, Saved
from sparknet.training.run_files.state_bytes import load_optimizer, load_weights, optimizer_file, weights_file
from sparknet.training.run_files.tensor_bytes import TensorFile, read_bytes

__all__ = ["CaffeSnapshots", "begin", "check_prefix", "make_snapshots", "restored", "starting_point"]


class CaffeSnapshots:
    """Writes a checkpoint once more, as Caffe's files.

    Args:
        objective: a net of the run's kind, to read checkpoints into.
        settings: the solver's.
        plan: says after which rounds checkpoints are due.
        stem: what the names begin with, directory included.
        since: iteration and step count that the run began with.

    Raises:
        NetError: its layers have names that HDF5 cannot tell apart.
    """

    def __init__(
        self,
        objective: CaffeObjective,
        settings: SolverSettings,
        *,
        plan: RoundPlan,
        stem: Path,
        since: tuple[int, int] = (0, 0),
    ) -> None:
        # The driver's own net, which nothing else uses once the run has begun: it serves as a place to read into.
        self._net = objective.train
        self._settings = settings
        self._plan = plan
        self._stem = stem
        self._since = since
        self._optimizer = CaffeOptimizer(
            parameter_groups(self._net.learnable), lr=settings.policy.base_lr, rule=settings.rule
        )
        weights = sum(blob.tensor.nbytes for blob in self._net.learnable)
        # Neither Caffe nor protobuf reads a larger message, and a run must not end for it at its first snapshot.
        too_large = weights * max(1, len(settings.rule.histories)) > LIMIT_BYTES
        self._ending = ".h5" if too_large or settings.snapshot_format == "HDF5" else ""
        if self._ending:
            check_hdf5(self._net, f"{stem}{self._ending}")

    def due(self, round: int, iteration: int, *, last: bool) -> bool:
        """Whether the settings want this checkpoint as a snapshot: of the last round only some do."""
        regular = self._settings.snapshot > 0 and self._plan.checkpoints(round, iteration)
        return not last or self._settings.snapshot_after_train or regular

    def write(self, iteration: int, checkpoint: Path) -> tuple[Path, Path]:
        """Write weights and solver state of a checkpoint, each whole or not at all.

        Args:
            iteration: which it is of.
            checkpoint: its directory.

        Returns:
            The two files.

        Raises:
            CheckpointError: they cannot be written, or the checkpoint cannot be read.
            NetError: the weights cannot be written.
        """
        try:
            weights, inner = (read_bytes(checkpoint / name) for name in (WEIGHTS, INNER))
            load_weights(self._net, weights)
            load_optimizer(self._optimizer, inner)
            self._stem.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"no snapshot of {checkpoint} can be made: {error}; see to that file") from error
        model, state = (
            self._stem.with_name(f"{self._stem.name}_iter_{iteration}.{kind}{self._ending}")
            for kind in ("caffemodel", "solverstate")
        )
        tensors = [blob.tensor for blob in self._net.learnable]
        history = tuple(blob.detach().float().numpy() for blob in self._optimizer.histories(tensors))
        # The weights first, so that no state names weights that are not there.
        # Not in the frame of the file that the net began with, which Caffe does not keep either.
        self._net.save_weights(model, as_loaded=False)
        # Caffe counts the step at the beginning of an iteration: the last one that did is the one before.
        step = settled_step(self._settings.policy, max(0, iteration - 1), since=self._since)
        write_state(
            SavedState(iteration=iteration, current_step=step, learned_net=str(model), history=history), state
        )
        return model, state


def make_snapshots(
    config: RunConfig, settings: SolverSettings, objective: CaffeObjective, *, run_dir: Path
) -> CaffeSnapshots:
    """The writer of a run's snapshots.

    Raises:
        CheckpointError: the directory that snapshot_prefix names cannot be made.
    """
    prefix = settings.snapshot_prefix
    stem = Path(prefix) if prefix else run_dir / "snapshots" / (objective.name.replace("/", "_") or "net")
    if prefix and (prefix.endswith("/") or stem.is_dir()):
        stem = stem / objective.name.replace("/", "_")
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"snapshot_prefix is {prefix!r} and {stem.parent} cannot be made: {error.strerror or error}; correct "
            "it in the solver file, or give a directory that can be written"
        ) from error
    begun, passed = config.solver.snapshot_step or (0, 0)
    return CaffeSnapshots(
        objective,
        settings,
        plan=RoundPlan.of(config),
        stem=stem,
        since=(begun, passed),
    )


def check_prefix(settings: SolverSettings) -> None:
    """Find whether the directory that snapshot_prefix names can be made and written, without making it.

    Raises:
        CheckpointError: it cannot.
    """
    prefix = settings.snapshot_prefix
    if not prefix:
        return
    stem = Path(prefix).absolute()
    directory = stem if prefix.endswith("/") or is_directory(stem) else stem.parent
    # The nearest folder that is there decides; lexists, since a dangling link is there and cannot be made.
    there = next(place for place in (directory, *directory.parents) if os.path.lexists(place))
    if not is_directory(there):
        reason = f"{there} is no directory"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = f"{there} cannot be written"
    else:
        return
    raise CheckpointError(
        f"snapshot_prefix is {prefix!r} and {reason}; correct it in the solver file, or give a directory that can "
        "be written"
    )


def starting_point(config: RunConfig, settings: SolverSettings) -> RunProgress:
    """Rounds and iterations after which a run begins; more than 0 only with `solver.snapshot`.

    Raises:
        CheckpointError: the snapshot is missing or damaged.
        ConfigError: it is of the end of the run, or beyond.
    """
    if not config.solver.snapshot:
        return RunProgress()
    began, run = config.solver.snapshot_step, config.run
    iteration = began[0] if began else read_state(config.solver.snapshot).iteration
    # As many as there would have been, so that run.rounds counts from the beginning.
    done = RoundPlan.of(config).count_rounds(0, iteration)
    if run.iterations is not None and iteration >= run.iterations:
        by_solver = run.iterations == settings.max_iter
        end = f"{'max_iter' if by_solver else 'run.iterations'} is {run.iterations}"
        remedy = "raise max_iter in the solver file" if by_solver else "raise run.iterations"
    elif run.rounds is not None and done >= run.rounds:
        end, remedy = f"run.rounds is {run.rounds}, and round {done} ends there", "raise run.rounds"
    else:
        return RunProgress(round=done, iteration=iteration)
    raise ConfigError(
        f"solver.snapshot {config.solver.snapshot}: the snapshot is at iteration {iteration} and {end}: {remedy}, "
        "or give an earlier snapshot"
    )


def restored(snapshot: str, settings: SolverSettings, net: CaffeNet) -> CaffeSolver:
    """The solver of a snapshot, whose weights the net has then.

    Raises:
        CheckpointError: the snapshot is missing or damaged, or of another net or solver type.
        NetError: its weights are damaged, or of another net.
    """
    # What the solver starts from otherwise, the snapshot replaces.
    solver = CaffeSolver(dataclasses.replace(settings, weights=(), random_seed=-1), net)
    solver.restore(snapshot)
    return solver


def begin(
    config: RunConfig, settings: SolverSettings | None, objective: CaffeObjective, checkpoints: Checkpoints
) -> tuple[Saved, tuple[str, ...]]:
    """Write the checkpoint that a run with `net.weights` or `solver.snapshot` begins from.

    Returns:
        The checkpoint, and the layers for which no file of `net.weights` has blobs.

    Raises:
        CheckpointError: the snapshot is missing, damaged or of another net, or the checkpoint cannot be written.
        NetError: the weights are missing, damaged or of another net.
        ConfigError: the snapshot is of the end of the run, or beyond.
    """
    net, files, start = objective.train, dict[str, TensorFile](), RunProgress()
    missing = load_listed(net, config.net.weights) if config.net.weights else ()
    if settings is not None and config.solver.snapshot:
        start = starting_point(config, settings)
        files[INNER] = optimizer_file(restored(config.solver.snapshot, settings, net).optimizer)
    # As a checkpoint, which workers begin from and fall back to as from any other.
    files[WEIGHTS] = weights_file(net)
    with checkpoints.writing(start) as draft:
        for name, data in files.items():
            draft.write_all(name, data)
    return checkpoints.load(start.round), missing  # read back, with its hashes
