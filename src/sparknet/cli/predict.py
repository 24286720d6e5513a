"""`sparknet predict` and `sparknet featurize`: what a trained net makes of rows, written as a table."""

import argparse
import sys
import time
from dataclasses import dataclass, replace

from sparknet.cli.spark_log import log_of_failures
from sparknet.cli.test import other_rows, state_of
from sparknet.cli.train import NOT_ALLOWED, find_modules_here, overrides_from, s3_endpoint_from
from sparknet.config import RunConfig
from sparknet.data.sources.opening import OpenedSource, open_source
from sparknet.errors import UsageError
from sparknet.reporting.console import PlainConsole
from sparknet.reporting.table import print_facts
from sparknet.spark.frames.read_source import read_source
from sparknet.spark.inference import InferenceSettings, Wanted, check_wanted, infer
from sparknet.spark.inference.write import find_target, write_rows
from sparknet.spark.jobs.error_translation import spark_errors
from sparknet.spark.jobs.session import check_java, session_for
from sparknet.spark.measure import data_at
from sparknet.training.caffe_runs.run_config import scored_run
from sparknet.training.caffe_runs.scored_net import caffe_model
from sparknet.training.run_files.run_dir import reading_run
from sparknet.training.run_files.saved_model import Model, load_model

__all__ = ["run"]

_TASKS = "sparknet.spark.inference.task"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Opened:
    """A model, and rows for it."""

    model: Model
    config: RunConfig
    """How the rows are read, and where it runs."""
    rows: OpenedSource


def run(arguments: argparse.Namespace) -> int:
    """Write; everything that can be wrong without Spark is found before it starts."""
    _check_usage(arguments)
    find_modules_here()
    opened = _of_files(arguments) if arguments.model is not None else _of_run(arguments)
    config, model = opened.config, opened.model
    place, form = find_target(arguments.to, overwrite=arguments.overwrite, s3_endpoint=config.data.s3_endpoint)
    wanted, settings = _wanted(arguments, model), _settings(arguments, config)
    check_wanted(wanted, model)
    check_java()
    began = time.monotonic()
    # Plain lines on standard output, as `sparknet test` has them: on the other one stands what went wrong, alone.
    screen = PlainConsole(sys.stdout)

    def note(message: str) -> None:
        screen.on_event({"event": "note", "message": message, "elapsed_seconds": time.monotonic() - began})

    note("starting Spark")
    workers = config.run.workers
    with (
        log_of_failures(arguments.command) as log,
        session_for(config.cluster, workers=workers, name=config.run.name, log_path=log, preimport=_TASKS) as spark,
    ):
        note(f"writing {place}")
        with spark_errors(f"reading {opened.rows.where.path or config.data.source}"):
            frame = read_source(spark, opened.rows, config.data)
        found = infer(frame, model, wanted, settings=settings, opened=opened.rows, data=config.data)
        rows = write_rows(found, place, form)
    seconds = time.monotonic() - began
    print_facts([("rows", f"{rows:,}"), ("written", str(place)), ("time", f"{seconds:,.1f} s")])
    return 0


def _check_usage(arguments: argparse.Namespace) -> None:
    if (arguments.run_dir is None) == (arguments.model is None):
        given = "neither RUN_DIR nor --model is" if arguments.model is None else "RUN_DIR and --model are"
        raise UsageError(f"{given} given; one of them says which net it is: give one")
    if (arguments.model is None) != (arguments.weights is None):
        raise UsageError("--model and --weights go together, a net's prototxt and its weights: give both or none")
    if arguments.run_dir is not None and not arguments.data:
        raise UsageError("--data is missing; it says which rows the net is given: name some")


def _of_run(arguments: argparse.Namespace) -> _Opened:
    settings = [*NOT_ALLOWED, *other_rows(arguments.data), *overrides_from(arguments)]
    endpoint = s3_endpoint_from(arguments)
    with reading_run(arguments.run_dir, s3_endpoint=endpoint) as run:
        config = run.load_config(settings)
    # Before Spark, which takes seconds: a run that is not finished has none.
    net = config.net
    model = load_model(
        run.uri.rstrip("/") + "/model",
        python_path=net.python_path if net.allow_python_layers else None,
        s3_endpoint=endpoint,
    )
    config = replace(config, data=data_at(config.data, arguments.data))
    return _Opened(model=model, config=config, rows=open_source(config.data, validation=True))


def _of_files(arguments: argparse.Namespace) -> _Opened:
    start = scored_run(
        arguments.model, arguments.data, overrides_from(arguments), state=state_of(arguments), batches=None
    )
    config = start.config
    if config.data.beside:
        raise UsageError(
            f"the net's data layers name {len(config.data.beside) + 1} sources, which go together by the numbers "
            "of their rows; a prediction is made of one: name it with --data"
        )
    rows = open_source(config.data, validation=bool(config.data.validation_path))
    tested = caffe_model(start, rows.schema(config.data), weights=arguments.weights, measured=False)
    return _Opened(model=tested.model, config=config, rows=rows)


def _wanted(arguments: argparse.Namespace, model: Model) -> Wanted:
    if arguments.command == "featurize":
        return Wanted(blobs={blob: blob for blob in arguments.blobs})
    further = {name: name for name in arguments.columns}
    rows, table = model.description.rows, model.description.table
    category = table.categories.get(rows.label.name) if table is not None else None
    named = rows.class_names or (category is not None and category.words)
    return Wanted(prediction="prediction", predicted_label="predicted_label" if named else "", **further)


def _settings(arguments: argparse.Namespace, config: RunConfig) -> InferenceSettings:
    cluster = config.cluster
    return InferenceSettings(
        batch_size=arguments.batch_size,
        handle_invalid=arguments.invalid,
        device=cluster.device,
        leases=cluster.leases,
        redis=cluster.redis,
        threads=max(cluster.threads_per_worker, config.data.threads),
    )
