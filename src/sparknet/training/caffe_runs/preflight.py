"""What can be wrong with Caffe's files, found before Spark starts."""

from sparknet.caffe.weights.trained import load_listed
from sparknet.config import RunConfig
from sparknet.errors import ConfigError
from sparknet.training.caffe_runs.snapshots import check_prefix, restored, starting_round
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.caffe_objective import CaffeObjective
from sparknet.training.objectives.input_binding import RowKind, seen_rows
from sparknet.training.objectives.optimiser import solver_settings
from sparknet.training.objectives.preprocessing import check_preprocessing

__all__ = ["check_caffe"]


def check_caffe(config: RunConfig, rows: RowKind | None) -> None:
    """Hold nets, solver, means, weights and snapshot against each other and against the rows.

    Args:
        config: of a new run.
        rows: what the source's rows are, as far as that is known without reading them; None: not at all.

    Raises:
        NetError: the net cannot be built, does not take the rows, or weights do not fit it.
        ConfigError: a value of the solver breaks a rule, a mean file is missing, or the snapshot is not at the end
            of a round, or at the end of the run.
        CheckpointError: the snapshot is missing, damaged, or of another net or solver type, or the directory of
            snapshots cannot be written.
    """
    if config.solver.prototxt:
        solver_settings(config.solver.prototxt)
        check_prefix(config)
        starting_round(config)
    if not config.net.prototxt or rows is None:
        return
    seen = seen_rows(rows, config.data)
    objective = build_objective(config.net, seen, batch_size=config.solver.batch_size, seed=config.run.seed)
    if not isinstance(objective, CaffeObjective):
        raise ConfigError(f"net.prototxt gave a {type(objective).__name__}; this is a defect, please report it")
    check_preprocessing(config, objective, rows)
    load_listed(objective.train, config.net.weights)
    if config.solver.snapshot:
        restored(config, objective.train)
