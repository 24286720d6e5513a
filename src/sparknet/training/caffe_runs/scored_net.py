"""A Caffe net with weights from files, ready to be measured without any run."""

from dataclasses import dataclass

from sparknet.caffe.weights.trained import load_listed
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import ConfigError, NetError
from sparknet.training.caffe_runs.open_run import RunStart
from sparknet.training.objectives.build_objective import build_test_objective
from sparknet.training.objectives.input_binding import input_rows
from sparknet.training.objectives.preprocessing import file_preprocessing
from sparknet.training.run_files.saved_model import Description, Model

__all__ = ["TestedNet", "caffe_model"]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class TestedNet:
    """What `sparknet test --model` measures."""

    model: Model
    """The TEST net with its preprocessing."""
    loss_weights: dict[str, float]
    """By output, its weight in the net's loss, where it has one."""
    counts: dict[str, int]
    """By output that is measured, how many numbers it has."""

    @property
    def batch(self) -> int:
        """Rows of a batch, as the file gives it."""
        return self.model.objective.evaluation_batch


def caffe_model(start: RunStart, rows: RowSchema | None, *, weights: str, measured: bool = True) -> TestedNet:
    """Build the TEST net of a Caffe file and load weights.

    Args:
        start: net and data.
        rows: what the source's rows are; None where only the net's file can tell.
        weights: weight files, separated by commas.
        measured: the net is to measure something.

    Raises:
        NetError: the net cannot be built or measures nothing, or the weights are missing, do not fit, or lack
            layers of the net.
        ConfigError: nothing tells the rows' shape, or a mean file is missing.
    """
    config = start.config
    rows = rows or _rows_in_file(start)
    objective = build_test_objective(start.recipe, rows, data=config.data, measured=measured)
    chain = file_preprocessing(config, objective.transforms, rows)
    missing = load_listed(objective.test, weights)
    # In training such layers are what is learnt anew; in a test they would give the numbers of chance.
    if missing:
        raise NetError(
            f"{weights} has no weights for layers {', '.join(missing)} of {objective.test.spec.source}, and what "
            "these are filled with would be tested: give the whole file that belongs to this net"
        )
    description = Description(net=config.net, rows=rows, data=config.data)
    return TestedNet(
        model=Model(description=description, objective=objective, chain=chain, test_net_only=True),
        loss_weights=objective.loss_weights,
        counts=objective.measured,
    )


def _rows_in_file(start: RunStart) -> RowSchema:
    data, spec = start.config.data, start.recipe.spec
    shape = input_rows(spec.select("TEST")) if spec is not None else None
    if shape is None:
        raise ConfigError(
            f"neither the net's file nor source {data.source} tells the shape of a row; give it: "
            "--set data.shape=[channels,height,width]"
        )
    return RowSchema(
        inputs=(Column(name=data.input_names[0], dtype="float32", shape=shape),),
        targets=(Column(name=data.target_names[0], dtype="int64", shape=(), classes=data.classes),),
    )
