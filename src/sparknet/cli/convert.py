"""`sparknet data to-lmdb` and `to-parquet`: any source written in another format."""

import argparse
import sys
import time

from sparknet.cli.job import DataAndCluster, count_workers, job_config
from sparknet.cli.spark_log import log_of_failures
from sparknet.data.sources.opening import open_source
from sparknet.data.sources.registry import FORMATS
from sparknet.errors import UsageError
from sparknet.reporting.console import PlainConsole
from sparknet.reporting.table import print_facts
from sparknet.spark.jobs.session import check_java, session_for
from sparknet.spark.preparing.convert import Conversion, free_place, to_lmdb, to_parquet
from sparknet.training.caffe_runs.data_layers import data_source

__all__ = ["run"]

_TASKS = "sparknet.spark.preparing.convert"


def run(arguments: argparse.Namespace) -> int:
    """Write; everything that can be wrong without Spark is found before it starts."""
    config = _config(arguments)
    testing = arguments.split == "test"
    if not arguments.to:
        raise UsageError("--to is ''; it names what is made: give a directory or URI")
    # Before the source is listed, which may take long; the conversion looks again before it writes.
    free_place(config.data, arguments.to)
    opened = open_source(config.data, validation=testing)
    check_java()
    began = time.monotonic()
    # On standard error: the facts at the end are the output.
    screen = PlainConsole(sys.stderr)

    def note(message: str) -> None:
        elapsed = time.monotonic() - began
        screen.on_event({"event": "note", "message": message, "elapsed_seconds": elapsed})

    note("starting Spark")
    name, workers = arguments.action, count_workers(arguments)
    with (
        log_of_failures(name) as log,
        session_for(config.cluster, workers=workers, name=name, log_path=log, preimport=_TASKS) as spark,
    ):
        note(f"writing {arguments.to}")
        if arguments.action == "to-lmdb":
            done = to_lmdb(spark, opened, config.data, arguments.to, partitions=arguments.partitions)
        else:
            done = to_parquet(spark, opened, config.data, arguments.to, keys=arguments.keys)
    print_facts(_facts(done, arguments, seconds=time.monotonic() - began))
    return 0


def _config(arguments: argparse.Namespace) -> DataAndCluster:
    table = data_source(arguments.source, arguments.set, testing=True)
    with_tests = [name for name, form in FORMATS.items() if form.holds_tests]
    if arguments.split == "test" and table["source"] not in with_tests:
        raise UsageError(
            f"--split test and SOURCE {arguments.source} are given; only directories of {', '.join(with_tests)} "
            "hold test rows beside the others: name the test rows as SOURCE, and leave --split out"
        )
    if arguments.encoded:
        table["keep"] = "encoded"
    if arguments.resize:
        table["resize"] = list(arguments.resize)
    if arguments.s3_endpoint:
        table["s3_endpoint"] = arguments.s3_endpoint
    if arguments.action == "to-lmdb":
        # As `to_lmdb` has it, but before the source is opened: windows are cut out of images by the source itself.
        table["channel_order"] = "bgr"
    config = job_config(DataAndCluster, arguments, {"data": table})
    data = config.data
    if data.keep == "encoded" and data.resize:
        size = "x".join(map(str, data.resize))
        raise UsageError(
            f"--encoded and --resize {size} are given (data.keep, data.resize); files that are kept keep their "
            "size: leave one of them out"
        )
    return config


def _facts(done: Conversion, arguments: argparse.Namespace, *, seconds: float) -> list[tuple[str, str]]:
    what = "database" if arguments.action == "to-lmdb" else "key"
    several = "" if done.parts == 1 else "s"
    facts = [("rows", f"{done.rows:,} in {done.parts:,} {what}{several}"), ("written", str(arguments.to))]
    if done.damage.rows:
        facts.append(("damaged", f"{done.damage.rows:,} left out, the first: {done.damage.examples[0]}"))
    return [*facts, ("time", f"{seconds:,.1f} s")]
