"""Predictions and features of a trained model, as columns of a DataFrame."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyspark
from pyspark import cloudpickle
from pyspark.ml.functions import array_to_vector
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StructType, UserDefinedType

from sparknet.config import Data, encode
from sparknet.data.rows.reading import ReadPlan
from sparknet.data.sources.opening import DATA_FRAME, OpenedSource
from sparknet.data.sources.passes import PASS
from sparknet.errors import ConfigError, DataError, MissingDependency
from sparknet.spark.frames.column_kinds import FAULT
from sparknet.spark.frames.select_columns import MadeCells, cells_beside
from sparknet.spark.inference.model_file import hand_out
from sparknet.spark.inference.net_cache import NetPlan
from sparknet.spark.inference.outputs import outputs_of
from sparknet.spark.inference.task import InferenceTask
from sparknet.spark.inference.wanted import InferenceSettings, Wanted
from sparknet.training.run_files.saved_model import Model

__all__ = ["infer"]

_MADE = "sparknet: what the net made of the row"
"""A column of ours beside the frame's own, with a name that no table has."""


def infer(
    frame: DataFrame,
    model: Model,
    wanted: Wanted,
    *,
    settings: InferenceSettings | None = None,
    opened: OpenedSource = DATA_FRAME,
    data: Data | None = None,
) -> DataFrame:
    """Add what a model makes of each row; nothing runs before an action asks for it.

    The net sees a row once, however many columns are added and whatever the query does with them: rows that are
    not wanted are filtered out before, since a filter behind does not move in front of it.

    Args:
        frame: the rows, with the columns that the model was trained on; its target and weights may be missing.
        model: what `load_model` gave.
        wanted: which columns are added.
        settings: how the rows go through the net.
        opened: the source that `read_source` made the frame of.
        data: how its columns are read; not given: as in training.

    Returns:
        All columns of `frame` as they are, and behind them those that are wanted.

    Raises:
        ConfigError: the model has not what is asked for, or a column of such a name is there.
        NetError: there is no such blob, or the net's output cannot be read.
        DataError: a column that the net needs is missing or of a type that it does not take.
        MissingDependency: this Spark is older than 4.1.
        ClusterError: the model cannot be handed to the workers.
    """
    settings = settings or InferenceSettings()
    outputs = outputs_of(wanted, model)
    _check_free(frame, wanted.names)
    description, data = model.description, data or model.description.data
    names = [column.name for column in description.rows.inputs]
    if PASS in names:
        raise DataError(f"net {model.objective.name} makes its rows itself; only a net that takes some predicts")
    called = dict(zip(names, settings.columns or names, strict=True))
    made = _in_rows(cells_beside(frame, data, called, description.table), frame)
    known = [*(f"c{at}" for at in range(len(names))), *(["fault"] if made.fault else [])]
    cells = [*made.cells, *made.fault]
    # A frame of `read_source` alone has them by these names; in others they mean something else.
    for said in ("error", "name") if FAULT in frame.columns else ():
        if said in frame.columns:
            known, cells = [*known, said], [*cells, F.col(said)]
    task = InferenceTask(
        net=_net_plan(frame, model, settings),
        rows=_read_plan(opened, model, settings, data),
        trained=description.rows.inputs,
        names=tuple(known),
        outputs=outputs,
        batch_size=settings.batch_size,
        refuse=settings.handle_invalid == "error",
    )
    # "Not deterministic" keeps Spark from running the net once for a filter and once more for what it selects.
    function = _arrow_udf()(task.run, returnType=outputs.schema).asNondeterministic()
    found = made.staged.select("*", function(*cells).alias(_MADE)).drop(*made.extra)
    if settings.handle_invalid == "skip":
        found = found.where(F.col(f"`{_MADE}`").isNotNull())
    fields: list[Column] = []
    for at, one in enumerate(outputs.columns):
        cells = F.col(f"`{_MADE}`")[f"f{at}"]
        # Null has no vector, and asking for it would end the query.
        made_of = F.when(cells.isNotNull(), array_to_vector(cells)) if outputs.is_vector(one) else cells
        fields.append(made_of.alias(one.name))
    return found.select("*", *fields).drop(_MADE)


def _in_rows(made: MadeCells, frame: DataFrame) -> MadeCells:
    """Keep Spark from handing the columns of a scan to Arrow as they are, where it has no Arrow type for one.

    Spark 4.3 does so where the function stands right above a scan of Parquet, and fails at a vector, although that
    is only passed through. What is not deterministic stays between the two, and works on rows.
    """
    if made.extra or not any(_holds_own_type(field.dataType) for field in frame.schema.fields):
        return made
    names = tuple(f"sparknet: cells {at}" for at in range(len(made.cells)))
    always = F.monotonically_increasing_id() >= 0
    cells = [F.when(always, cell).alias(name) for name, cell in zip(names, made.cells, strict=True)]
    return replace(
        made,
        staged=made.staged.select("*", *cells),
        cells=tuple(F.col(f"`{name}`") for name in names),
        extra=names,
    )


def _holds_own_type(kind: DataType) -> bool:
    match kind:
        case UserDefinedType():
            return True
        case ArrayType():
            return _holds_own_type(kind.elementType)
        case MapType():
            return _holds_own_type(kind.keyType) or _holds_own_type(kind.valueType)
        case StructType():
            return any(_holds_own_type(field.dataType) for field in kind.fields)
        case _:
            return False


def _net_plan(frame: DataFrame, model: Model, settings: InferenceSettings) -> NetPlan:
    file = hand_out(frame.sparkSession, model)
    said = json.dumps(encode(model.description), sort_keys=True)
    # Of code nothing tells what it does but what it is pickled to.
    code = cloudpickle.dumps(dict(settings.code)) if settings.code else b""
    key = hashlib.sha256("\n".join((file, said, str(settings.cluster))).encode() + code).hexdigest()
    return NetPlan(
        key=key,
        description=model.description,
        file=file,
        test_net_only=model.test_net_only,
        cluster=settings.cluster,
        code=settings.code,
    )


def _read_plan(opened: OpenedSource, model: Model, settings: InferenceSettings, data: Data) -> ReadPlan:
    chain = model.chain
    return ReadPlan(
        columns=tuple(
            opened.column_plan(data, column.name).as_trained(
                column, crop=chain[column.name].crop if column.name in chain else 0, threads=settings.threads
            )
            for column in model.description.rows.inputs
        )
    )


def _check_free(frame: DataFrame, names: Sequence[str]) -> None:
    # As Spark compares names.
    there = {name.lower(): name for name in frame.columns}
    for name in names:
        if name.lower() in there:
            raise ConfigError(
                f"the column {there[name.lower()]} is in the data already, and one of that name is to be added: "
                "give it another name, or drop that of the data"
            )


def _arrow_udf() -> Any:
    try:
        from pyspark.sql.functions import arrow_udf
    except ImportError as error:
        raise MissingDependency(
            f"pyspark {pyspark.__version__} has no functions over Arrow; predictions need 4.1 or newer: "
            "pip install 'pyspark>=4.1'"
        ) from error
    return arrow_udf
