"""Measuring a trained model on the workers: accuracy and loss, or a net's own outputs, over every row exactly once.

The weights travel as broadcasts: so workers need to reach the store or the source, as in training, but not the run
directory. Other rows than the run's own are not prepared first:
they go from the source straight through the net.
"""

import functools
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession

from sparknet.config import Data, RunConfig, decode, encode
from sparknet.data.rows.columns import check_alike
from sparknet.data.rows.damage import Damage
from sparknet.data.rows.reading import ReadPlan, RowReader, WholeRows
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.rows.table_encoding import Category, TableEncoding
from sparknet.data.shards.prepared import PreparedData
from sparknet.data.sources.opening import OpenedSource, OpenedSources
from sparknet.data.sources.registry import find_format
from sparknet.errors import DataError
from sparknet.spark.frames.read_source import read_source
from sparknet.spark.frames.select_columns import select_columns
from sparknet.spark.jobs.addresses import find_driver_host
from sparknet.spark.jobs.broadcast_bytes import Whole, broadcast_bytes
from sparknet.spark.jobs.error_translation import spark_errors
from sparknet.spark.jobs.jobs import collect_reports, numbered
from sparknet.spark.preparing.prepare import prepare_run
from sparknet.spark.preparing.store import open_store
from sparknet.training.coordination.messages import ChoreReport
from sparknet.training.coordination.post_commit import Conclude, add_up, as_fields
from sparknet.training.objectives.build_objective import build_objective, build_test_objective
from sparknet.training.objectives.label_check import check_held_out
from sparknet.training.objectives.label_rules import check_extremes
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.preprocessing import Chain
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.objectives.seeding import take_place
from sparknet.training.run_files.saved_model import Description, Model
from sparknet.training.run_files.state_bytes import load_weights, weights_file
from sparknet.training.worker.evaluate import Cuts, Evaluation, evaluate_part

__all__ = ["Measurement", "data_at", "measure_source", "measure_validation"]

_DOING = "testing the model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What a model is worth on some rows."""

    rows: int
    """Of which each was looked at at least once."""
    looked_at: int = 0
    """How often one was: more often than there are rows where the batches that were asked for go beyond the last;
    0: as often as there are rows."""
    accuracy: float | None = None
    """Top-1, 0..1."""
    top5: float | None = None
    """The label is among the five highest scores, 0..1."""
    loss: float | None = None
    """Mean loss, or the net's own output of that name."""
    outputs: dict[str, float] = field(default_factory=dict[str, float])
    """Means of the net's other outputs by name."""
    seconds: float
    """What the slowest worker took for its rows, reading included, the start of Spark and Python not."""
    skipped: int = 0
    """Damaged rows that were left out."""

    @property
    def rows_per_second(self) -> float:
        """Over `seconds`."""
        return max(self.rows, self.looked_at) / self.seconds

    @property
    def measures(self) -> dict[str, float]:
        """All means by name."""
        named = {"accuracy": self.accuracy, "top5": self.top5, "loss": self.loss}
        return {name: value for name, value in named.items() if value is not None} | self.outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasurePlan:
    """Everything a task must know; it travels with it."""

    config: RunConfig
    description: Description
    weights: Whole
    """The state_dict, as a safetensors file."""
    chain: Chain
    """By column what its values go through."""
    data: PreparedData | None = None
    """The rows, and how they are reached; None where they come by Spark."""
    tests: Mapping[str, Chain] = field(default_factory=dict[str, Chain])
    """By name what further rows go through."""
    test_net_only: bool = False
    """The weights are those of a Caffe file's TEST net, which is all that is built."""
    rows: ReadPlan | None = None
    """How rows are read where they come by Spark."""

    def objective(self) -> Objective:
        """Rebuild what is measured on a worker."""
        # Spark gives Python workers one thread of OpenMP for each core of a task.
        torch.set_num_threads(self.config.cluster.threads_per_worker)
        # A process that is no task measures alone, and goes on to do other things.
        if (context := TaskContext.get()) is not None:
            take_place(context.partitionId(), workers=self.config.run.workers)
        objective = _build(self.description, test_net_only=self.test_net_only)
        # Over random weights of seed 0, all of which are replaced: a missing tensor is an error.
        load_weights(objective.module, self.weights.whole())
        return objective


def data_at(data: Data, path: str) -> Data:
    """How to read `path` for testing: as the validation rows of a run are read, all of them.

    A standard directory gives its test files, as with `data.validation_path`.

    Raises:
        DataError: the source has no files.
    """
    if not find_format(data).has_path:
        raise DataError(f"--data is {path!r}; source {data.source} comes without files: leave --data out")
    return replace(
        data,
        validation_path=path,
        validation_column="",
        validation_fraction=0.0,
        validation=None,
        tests={},
        on_hosts=False,
    )


def measure_validation(  # noqa: PLR0913 - all but three are named by the caller
    spark: SparkSession,
    model: Model,
    config: RunConfig,
    *,
    store: str | Path,
    sources: OpenedSources | None = None,
    note: Callable[[str], None],
    test_net_only: bool = False,
) -> Measurement:
    """Measure on the validation rows that `config` names, prepared in `store` if they are not there yet.

    Cut into the same parts as in the run, so that the numbers are the run's to the last bit.

    Args:
        spark: the session.
        model: what is measured.
        config: which rows, and by how many workers.
        store: path or URI of where the rows are prepared.
        sources: what `config` names, if it is open already.
        note: is told where the rows take a slow way.
        test_net_only: `model.module` is a Caffe file's TEST net.

    Raises:
        DataError: the rows cannot be prepared or do not fit the model.
        WorkerError: the net failed.
        ClusterError: Spark failed.
    """
    at = find_driver_host(spark, config.cluster, workers=config.run.workers)
    with open_store(spark, str(store), config, at=at, note=note) as opened:
        # Hosts that have files of their own are found by as many tasks as there were workers.
        workers = config.run.workers if config.data.on_hosts else 1
        data = prepare_run(spark, config.data, store=opened, seed=config.run.seed, workers=workers, sources=sources)
        return _measure_prepared(spark, model, config, data, test_net_only=test_net_only)


def _measure_prepared(
    spark: SparkSession, model: Model, config: RunConfig, data: PreparedData, *, test_net_only: bool
) -> Measurement:
    _check_fit(model.description, data.rows, data.table, test_net_only=test_net_only)
    check_held_out(model.objective, data)
    evaluation = Evaluation.of(model.objective, data, config)
    # Parts are the run's own, whoever measures them: tasks only share them out.
    frame = numbered(spark, evaluation.parts, tasks=config.run.workers)
    with _plan(spark, model, config) as plan:
        plan = replace(plan, data=data, test_net_only=test_net_only)
        task = functools.partial(measure_shards, plan)
        measured = _measured(frame, task, conclude=evaluation.conclude, where=data.parts[0].directory)
    return replace(measured, rows=min(measured.rows, data.validation_rows), looked_at=measured.rows)


def measure_source(
    spark: SparkSession,
    model: Model,
    config: RunConfig,
    opened: OpenedSource,
    *,
    most_rows: int | None = None,
    test_net_only: bool = False,
) -> Measurement:
    """Measure on every row of a source, without preparing it.

    Args:
        spark: the session.
        model: what is measured.
        config: how the rows are read, and by how many workers.
        opened: the source.
        most_rows: measure the first of them only.
        test_net_only: `model.module` is a Caffe file's TEST net.

    Raises:
        DataError: the rows cannot be read or do not fit the model, or more than `data.corrupt_share` of them are
            damaged.
        WorkerError: the net failed.
        ClusterError: Spark failed.
    """
    data, description = config.data, model.description
    where, share = opened.where.path or data.source, data.corrupt_share
    with spark_errors(f"reading {where}"):
        # Columns are what they were in training: what stood for what there is in the model's own table.
        frame = select_columns(read_source(spark, opened, data), data, validation=None, table=description.table)
    # `coalesce` makes no shuffle: rows stay where they are read, and only the number of tasks falls.
    tasks = (frame if most_rows is None else frame.limit(most_rows)).coalesce(config.run.workers)
    expected = {column.name: column for column in description.rows.columns}
    reading = ReadPlan(
        columns=tuple(
            one.as_trained(expected[one.name], crop=model.chain[one.name].crop if one.name in model.chain else 0)
            for one in opened.read_plan(data).columns
        )
    )
    with _plan(spark, model, config) as plan:
        task = functools.partial(measure_rows, replace(plan, test_net_only=test_net_only, rows=reading))
        return _measured(tasks, task, conclude=model.objective.conclude, where=where, corrupt_share=share)


def measure_shards(plan: MeasurePlan, batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """The task on prepared rows: `batches` hold the numbers of the parts to measure."""
    assert plan.data is not None, "the rows are prepared"
    threads = plan.config.data.threads
    evaluation = Evaluation.of(plan.objective(), plan.data, plan.config)
    chains = {"": plan.chain, **plan.tests}
    with ExitStack() as held:
        tables = {"": held.enter_context(plan.data.validation_table(threads=threads, cuts=plan.chain))}
        for name, rows in plan.data.tests.items():
            tables[name] = held.enter_context(rows.table(threads=threads, cuts=plan.tests[name]))
        began = time.perf_counter()
        for number in (number for batch in batches for number in batch.column(0).to_pylist()):
            found = evaluation.measure(number, tables, chains)
            yield {**encode(found), "until_seconds": time.perf_counter() - began}


def measure_rows(plan: MeasurePlan, batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """The task on rows as they come: `batches` as `RowReader.read` takes them."""
    context = TaskContext.get()
    assert context is not None, "Spark runs this in a task"
    assert plan.rows is not None, "rows come by Spark"
    # The net is built once for a partition, and before the clock starts.
    reader, objective = RowReader(plan.rows, context.partitionId()), plan.objective()
    began = time.perf_counter()
    rules = objective.label_rules(testing=True)
    for rows in reader.read(batches):
        check_extremes(rules, rows.extremes(np.ones(len(rows), bool)))
        found = _measure(plan, objective, rows)
        yield {**found, "until_seconds": time.perf_counter() - began}
    # At the end and with no rows: also a partition whose every row is damaged has something to say.
    damage = {"damage": encode(reader.damage), "until_seconds": time.perf_counter() - began}
    yield {**encode(ChoreReport(part=0, rows=0, sums={})), **damage}


def _measure(plan: MeasurePlan, objective: Objective, rows: WholeRows) -> dict[str, Any]:
    assert plan.rows is not None, "rows come by Spark"
    cuts = [bool(one.cut) for one in plan.rows.columns]
    for expected, found, cut in zip(plan.description.rows.columns, rows.columns, cuts, strict=True):
        check_alike(found, expected, any_type=plan.test_net_only, cut=cut)
    table = _Rows(rows.values, len(rows))
    return encode(evaluate_part(objective, table, plan.chain, cuts=Cuts.of(objective, len(table)), part=(0, 1)))


class _Rows:
    """Some whole rows from Spark, as a table."""

    def __init__(self, columns: Mapping[str, np.ndarray], count: int) -> None:
        self._columns = columns
        self._count = count

    def __len__(self) -> int:
        return self._count

    def slice(self, start: int, stop: int, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Rows `start` to `stop` (exclusive) of each column; images are cut already."""
        return {name: values[start:stop] for name, values in self._columns.items()}


def _build(description: Description, *, test_net_only: bool) -> Objective:
    recipe = Recipe.read(description.net, objective=description.objective)
    rows, data = description.rows, description.data
    if test_net_only:
        return build_test_objective(recipe, rows, data=data)
    # Batch and seed play no part: nothing is trained, and weights are about to be loaded.
    return build_objective(recipe, rows, batch_size=1, seed=0, data=data)


@contextmanager
def _plan(spark: SparkSession, model: Model, config: RunConfig) -> Generator[MeasurePlan]:
    with spark_errors(_DOING), broadcast_bytes(spark, weights_file(model.module)) as weights:
        yield MeasurePlan(
            config=config, description=model.description, weights=weights, chain=model.chain, tests=model.tests
        )


def _measured(
    frame: DataFrame, task: Any, *, conclude: Conclude, where: str, corrupt_share: float = 0.0
) -> Measurement:
    reports = collect_reports(frame, task, doing=_DOING)
    # summed in the order of the parts: floats would tell the difference
    reports.sort(key=lambda report: (report.values["part"], report.slot))
    rows = sum(report.values["rows"] for report in reports)
    damage = sum((decode(Damage, report.values.get("damage", {})) for report in reports), Damage())
    damage.check(rows + damage.rows, share=corrupt_share)
    if not rows:
        raise DataError(f"{where}: no rows; testing needs at least one: name another file or directory")
    # Sums and one division: means of unequal parts cannot be averaged.
    found = conclude(add_up(report.values["sums"] for report in reports), int(rows))
    # Of the slowest task, since all are waited for.
    seconds = max(report.values["until_seconds"] for report in reports)
    return Measurement(rows=int(rows), seconds=seconds, skipped=damage.rows, **as_fields(found))


def _check_fit(
    description: Description, rows: RowSchema, table: TableEncoding | None, *, test_net_only: bool
) -> None:
    here, there = (one.categories if one else {} for one in (table, description.table))
    for name in {*here, *there}:
        found, trained = (one.get(name, Category()).names for one in (here, there))
        # They were numbered anew, from other rows: class 2 would be another one.
        if found != trained:
            raise DataError(
                f"column {name} says {', '.join(found[:5]) or 'classes as they are'}, and said "
                f"{', '.join(trained[:5]) or 'classes as they are'} in training; both must be the same: test such "
                "rows with --data, which numbers them as in training"
            )
    for expected, found in zip(description.rows.columns, rows.columns, strict=True):
        check_alike(found, expected, any_type=test_net_only)
        if expected.classes and found.classes and found.classes > expected.classes:
            raise DataError(
                f"the data have {found.classes} classes and the model tells {expected.classes} apart; the "
                "data must have no more: test on the classes that it was trained on"
            )
