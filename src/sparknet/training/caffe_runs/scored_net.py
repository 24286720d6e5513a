"""A Caffe net with weights from files, ready to be measured without any run."""

from dataclasses import dataclass, replace

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.weights.trained import load_listed
from sparknet.config import RunConfig
from sparknet.data.rows.columns import MOST_CLASSES, Column
from sparknet.errors import ConfigError, NetError
from sparknet.training.caffe_runs.run_config import self_contained
from sparknet.training.objectives.build_objective import build_test_objective
from sparknet.training.objectives.input_binding import RowKind, input_rows
from sparknet.training.objectives.preprocessing import file_normalise
from sparknet.training.run_files.saved_model import Description, Model

__all__ = ["TestedNet", "caffe_model"]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class TestedNet:
    """What `sparknet test --model` measures."""

    model: Model
    """The TEST net with its preprocessing."""
    batch: int
    """Rows of a batch, as the file gives it."""
    loss_weights: dict[str, float]
    """By output, its weight in the net's loss, where it has one."""


def caffe_model(config: RunConfig, rows: RowKind | None, *, weights: str) -> TestedNet:
    """Build the TEST net of `config.net` and load weights.

    Args:
        config: net and data.
        rows: what the source's rows are; None where only the net's file can tell.
        weights: weight files, separated by commas.

    Raises:
        NetError: the net cannot be built or measures nothing, or the weights are missing, do not fit, or lack
            layers of the net.
        ConfigError: nothing tells the rows' shape, or a mean file is missing.
    """
    kind = _description(config, rows)
    objective = build_test_objective(config.net, kind.seen)
    normalise = file_normalise(config, objective, kind.input.shape)
    missing = load_listed(objective.test, weights)
    if missing:
        raise NetError(
            f"{weights} has no weights for layers {', '.join(missing)} of {objective.test.spec.source}, and what "
            "these are filled with would be tested: give the whole file that belongs to this net"
        )
    kind = replace(kind, net=self_contained(config).net)
    return TestedNet(
        model=Model(description=kind, module=objective.module, normalise=normalise),
        batch=objective.evaluation_batch,
        loss_weights=objective.loss_weights,
    )


def _description(config: RunConfig, rows: RowKind | None) -> Description:
    data = config.data
    if rows is not None:
        return Description(net=config.net, input=rows.input, label=rows.label, classes=rows.classes, data=data)
    shape = input_rows(NetSpec.from_prototxt(config.net.prototxt).select("TEST"))
    if shape is None:
        raise ConfigError(
            f"neither the net's file nor source {data.source} tells the shape of a row; give it: "
            "--set data.shape=[channels,height,width]"
        )
    return Description(
        net=config.net,
        input=Column(name=data.image, dtype="float32", shape=shape),
        label=Column(name=data.label, dtype="int64", shape=()),
        classes=data.classes or MOST_CLASSES,
        data=data,
    )
