"""The first rows through a net on the driver: what no row goes through fails here, once, and not in every task."""

import traceback

from sparknet.data.shards.prepared import PreparedData
from sparknet.errors import NetError, SparkNetError
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.preprocessing import Preprocessing
from sparknet.training.worker.evaluate import Cuts, evaluate_part

__all__ = ["rehearse"]

_ROWS = 2
"""As few as a normalisation takes that wants more than one."""


def rehearse(objective: Objective, data: PreparedData, preprocessing: Preprocessing) -> None:
    """Measure the first training rows, where that tells more than building the net has told.

    Where each host has its own, held-out rows stand for them. Nothing is trained, and a net in
    evaluation mode keeps its statistics.

    Raises:
        NetError: the net, the loss or a measure fails; the message has the shapes and the line.
    """
    if objective.fits_when_built:
        return
    if data.on_hosts and not data.validation_rows:
        return  # no row is here: a worker finds it out
    first = data.validation_table if data.on_hosts else data.train_table
    with first(cuts=preprocessing.train) as table:
        cuts = Cuts.of(objective, min(_ROWS, len(table)))
        try:
            evaluate_part(objective, table, preprocessing.train, cuts=cuts, part=(0, 1))
        except SparkNetError:
            raise
        except Exception as error:  # net, loss and measures are the user's: they may fail in any way
            shapes = ", ".join(f"{one.name} {(cuts.rows, *one.shape)}" for one in data.rows.columns)
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise NetError(
                f"net {objective.name}: the first {cuts.rows} rows ({shapes}) do not go through it: "
                f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno}): correct the net, or what "
                "it is given"
            ) from error
