"""`sparknet data to-lmdb` and `to-parquet`: any source written in another format."""

import argparse
import os
import sys
import time

from sparknet.cli.spark_log import log_of_failures
from sparknet.config import RunConfig
from sparknet.config.files import config_from
from sparknet.errors import UsageError
from sparknet.reporting.console import PlainConsole
from sparknet.reporting.table import print_facts
from sparknet.spark.convert import Conversion, to_lmdb, to_parquet
from sparknet.spark.session import check_java, session_for
from sparknet.spark.sources import check_source
from sparknet.training.caffe_data import data_source

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Write; everything that can be wrong without Spark is found before it starts."""
    config = _config(arguments)
    testing = arguments.split == "test"
    check_source(config.data, validation=testing)
    check_java()
    began = time.monotonic()
    screen = PlainConsole(sys.stderr)

    def note(message: str) -> None:
        elapsed = time.monotonic() - began
        screen.on_event({"event": "note", "message": message, "elapsed_seconds": elapsed})

    note("starting Spark")
    with log_of_failures(arguments.action) as log, session_for(config, log_path=log) as spark:
        note(f"writing {arguments.to}")
        if arguments.action == "to-lmdb":
            done = to_lmdb(spark, config.data, arguments.to, partitions=arguments.partitions, testing=testing)
        else:
            done = to_parquet(spark, config.data, arguments.to, keys=arguments.keys, testing=testing)
    print_facts(_facts(done, arguments, seconds=time.monotonic() - began))
    return 0


def _config(arguments: argparse.Namespace) -> RunConfig:
    other = next((one for one in arguments.set if not one.startswith(("data.", "cluster."))), None)
    if other is not None:
        raise UsageError(f"--set {other}: only data.* and cluster.* settings concern this command: leave it out")
    table = data_source(arguments.source, arguments.set, testing=True)
    if arguments.encoded:
        table["keep"] = "encoded"
    if arguments.resize:
        table["resize"] = list(arguments.resize)
    if arguments.s3_endpoint:
        table["s3_endpoint"] = arguments.s3_endpoint
    cores = arguments.workers or len(os.sched_getaffinity(0))
    tables = {
        "run": {"name": arguments.action, "workers": cores, "rounds": 1},
        "data": table,
        "net": {"name": "digits_cnn"},  # nothing is trained: any will do
        "cluster": {"master": arguments.master or "", "task_failures": 4},
    }
    return config_from(tables, arguments.set)


def _facts(done: Conversion, arguments: argparse.Namespace, *, seconds: float) -> list[tuple[str, str]]:
    what = "databases" if arguments.action == "to-lmdb" else "keys"
    facts = [("rows", f"{done.rows:,} in {done.parts:,} {what}"), ("written", str(arguments.to))]
    if done.damage.rows:
        facts.append(("damaged", f"{done.damage.rows:,} left out, the first: {done.damage.examples[0]}"))
    return [*facts, ("time", f"{seconds:,.1f} s")]
