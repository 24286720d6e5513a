"""`sparknet test`: what a finished run's model, or a Caffe net with weights, is worth on rows."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from pyspark.sql import SparkSession

from sparknet.caffe.schema import TEST, TRAIN, NetState
from sparknet.cli.spark_log import log_of_failures
from sparknet.cli.train import NOT_ALLOWED, find_modules_here, overrides_from, s3_endpoint_from
from sparknet.config import RunConfig, encode
from sparknet.data.sources.opening import OpenedSource, OpenedSources, open_source, open_sources
from sparknet.errors import UsageError
from sparknet.reporting.console import PlainConsole
from sparknet.reporting.story import wrapped
from sparknet.reporting.table import caffe_scores, measured_facts, print_facts
from sparknet.spark.jobs.session import check_java, session_for
from sparknet.spark.measure import Measurement, data_at, measure_source, measure_validation
from sparknet.training.caffe_runs.run_config import scored_run
from sparknet.training.caffe_runs.scored_net import caffe_model
from sparknet.training.objectives.label_check import check_tested_labels
from sparknet.training.objectives.preprocessing import Preprocessing
from sparknet.training.run_files.run_dir import RunFiles, reading_run
from sparknet.training.run_files.saved_model import Model, load_model

__all__ = ["other_rows", "run", "state_of"]


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; everything that can be wrong without Spark is found before it starts."""
    _check_usage(arguments)
    return _test_files(arguments) if arguments.model is not None else _test_run(arguments)


def _check_usage(arguments: argparse.Namespace) -> None:
    given = {
        "--model": arguments.model,
        "--weights": arguments.weights,
        "--iterations": arguments.iterations,
        "--phase": arguments.phase if arguments.phase != "TEST" else None,
        "--level": arguments.level or None,
        "--stage": arguments.stage or None,
    }
    caffe = [option for option, value in given.items() if value is not None]
    if arguments.run_dir is not None and caffe:
        raise UsageError(
            f"{arguments.run_dir} and {', '.join(caffe)} are given; a run's model or Caffe's files are tested: "
            "leave one of them out"
        )
    if arguments.run_dir is None:
        missing = [option for option in ("--model", "--weights") if given[option] is None]
        if missing:
            raise UsageError(f"{', '.join(missing)} missing; sparknet test takes RUN_DIR, or --model and --weights")


def _test_run(arguments: argparse.Namespace) -> int:
    # Nothing of the run is changed, so it is not owned: several tests may go on at once.
    with reading_run(arguments.run_dir, s3_endpoint=s3_endpoint_from(arguments)) as run:
        return _test_opened(run, arguments)


def _test_opened(run: RunFiles, arguments: argparse.Namespace) -> int:
    settings = [*NOT_ALLOWED, *other_rows(arguments.data), *overrides_from(arguments)]
    config = run.load_config(settings)
    find_modules_here()
    # Before Spark, which takes seconds: a run that is not finished has none.
    net = config.net
    model = load_model(
        run.uri.rstrip("/") + "/model",
        python_path=net.python_path if net.allow_python_layers else None,
        s3_endpoint=s3_endpoint_from(arguments),
    )
    if arguments.data is None and config.data.validation == "none":
        raise UsageError(
            f'{run.uri} has held out no rows (data.validation is "none"), so there are none to test: name some '
            "with --data"
        )
    kept = Preprocessing.load(run.path)
    model = replace(model, tests=kept.tests if kept else {})
    if arguments.data is not None:
        config = replace(config, data=data_at(config.data, arguments.data))
        opened = open_source(config.data, validation=True)
    else:
        opened = None if config.data.on_hosts else open_sources(config.data)
    if opened is not None:
        check_tested_labels(model.objective, opened, config.data)
    check_java()
    store = run.store(config)

    def measure(spark: SparkSession, note: Callable[[str], None]) -> Measurement:
        if opened is None or isinstance(opened, OpenedSources):
            return measure_validation(spark, model, config, store=store, sources=opened, note=note)
        return measure_source(spark, model, config, opened)

    # What was fetched to be looked at goes again, and a log that explains a failure must not.
    place = log_of_failures("test") if run.is_remote else nullcontext(run.path / "spark.log")
    with place as log:
        measured = _measured(config, measure, log=log)
    kind = f"from {arguments.data}" if arguments.data is not None else "held out"
    facts = {**encode(measured), "kind": kind, "rows_per_second": measured.rows_per_second}
    print_facts(measured_facts(facts))
    return 0


def other_rows(path: str | None) -> list[str]:
    """The settings that `--data` stands for: before those of `--set`, which may say more of these rows.

    A label file belongs to the rows that it was given for, so the run's is not taken for others.
    """
    if path is None:
        return []
    others = ("validation", "validation_column", "validation_fraction", "validation_labels")
    return [f"data.validation_path={json.dumps(path)}", *(f"data.{key}=" for key in others)]


def _test_files(arguments: argparse.Namespace) -> int:
    find_modules_here()
    start = scored_run(
        arguments.model,
        arguments.data,
        overrides_from(arguments),
        state=state_of(arguments),
        batches=arguments.iterations,
    )
    config = start.config
    # Of a net's Data layer of phase TEST the rows come as validation rows.
    opened = (
        open_sources(config.data)
        if config.data.beside
        else open_source(config.data, validation=bool(config.data.validation_path))
    )
    tested = caffe_model(start, opened.schema(config.data), weights=arguments.weights)
    check_tested_labels(tested.model.objective, opened, config.data)
    check_java()
    batches: int | None = arguments.iterations
    most_rows = None if batches is None else batches * tested.batch
    model: Model = tested.model

    def measure(spark: SparkSession, note: Callable[[str], None]) -> Measurement:
        if isinstance(opened, OpenedSource):
            found = measure_source(spark, model, config, opened, most_rows=most_rows, test_net_only=True)
            if most_rows is None or found.rows >= most_rows:
                return found
        # Rows of several sources go together by their numbers, and rows are begun anew behind the last one: which
        # rows are where only shards know.
        part = replace(config, run=replace(config.run, eval_batches=batches))
        with _store_for(part) as store:
            sources = opened if isinstance(opened, OpenedSources) else open_sources(config.data)
            return measure_validation(
                spark, model, part, store=store, sources=sources, note=note, test_net_only=True
            )

    with log_of_failures("test") as log:
        measured = _measured(config, measure, log=log)
    for line in caffe_scores(measured.measures, tested.loss_weights, tested.counts):
        print(line)
    return 0


def state_of(arguments: argparse.Namespace) -> NetState | None:
    """The state of the net that is asked for; None where nothing is said."""
    if arguments.phase == "TEST" and not arguments.level and not arguments.stage:
        return None
    phase = TRAIN if arguments.phase == "TRAIN" else TEST
    return NetState(phase=phase, level=arguments.level, stage=arguments.stage)


@contextmanager
def _store_for(config: RunConfig) -> Generator[str]:
    """Where rows are prepared that are measured once."""
    if config.data.store:
        yield config.data.store
        return
    with tempfile.TemporaryDirectory(prefix="sparknet-test-") as store:
        yield store


def _measured(
    config: RunConfig, measure: Callable[[SparkSession, Callable[[str], None]], Measurement], *, log: Path
) -> Measurement:
    began = time.monotonic()

    def note(message: str) -> None:
        elapsed = time.monotonic() - began
        screen.on_event({"event": "note", "message": message, "elapsed_seconds": elapsed})

    # Plain lines: the result is a table of its own, and nothing here lasts long enough for a bar.
    screen = PlainConsole(sys.stdout)
    note("starting Spark")
    run = config.run
    with session_for(
        config.cluster, workers=run.workers, name=run.name, log_path=log, preimport="sparknet.spark.measure"
    ) as spark:
        note("testing")
        measured = measure(spark, note)
    note(f"tested {measured.rows:,} rows" + wrapped(encode(measured)))
    return measured
