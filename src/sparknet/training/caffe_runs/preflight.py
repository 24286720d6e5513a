"""What can be wrong with Caffe's files, found before Spark starts."""

from dataclasses import replace

from sparknet.caffe.weights.trained import load_listed
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import ConfigError
from sparknet.training.caffe_runs.open_run import RunStart
from sparknet.training.caffe_runs.snapshots import check_prefix, restored, starting_point
from sparknet.training.objectives.caffe_objective import CaffeObjective
from sparknet.training.objectives.preprocessing import check_preprocessing

__all__ = ["check_caffe"]


def check_caffe(start: RunStart, rows: RowSchema | None) -> RunStart:
    """Hold nets, solver, means, weights and snapshot against each other and against the rows.

    Args:
        start: a new run.
        rows: what the source's rows are, as far as that is known without reading them; None: not at all.

    Returns:
        The run with the net that was built for the check.

    Raises:
        NetError: the net cannot be built, does not take the rows, or weights do not fit it.
        ConfigError: a mean file is missing, or the snapshot is of the end of the run, or beyond.
        CheckpointError: the snapshot is missing, damaged, or of another net or solver type, or the directory of
            snapshots cannot be written.
    """
    config, recipe = start.config, start.recipe
    if recipe.settings is not None:
        # The cheap checks first: building a large net takes seconds.
        check_prefix(recipe.settings)
        starting_point(config, recipe.settings)
    if recipe.spec is None or rows is None:
        return start
    # Built in earnest, since nothing short of it finds what a layer refuses. The driver needs the net: it is kept.
    objective = start.objective(rows)
    if not isinstance(objective, CaffeObjective):
        raise ConfigError(f"net.prototxt gave a {type(objective).__name__}; this is a defect, please report it")
    check_preprocessing(config, objective, rows)
    load_listed(objective.train, config.net.weights)
    if recipe.settings is not None and config.solver.snapshot:
        restored(config.solver.snapshot, recipe.settings, objective.train)
    return replace(start, built=(rows, objective))
