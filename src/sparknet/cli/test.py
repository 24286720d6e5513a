"""`sparknet test`: what a finished run's model is worth on its validation rows, or on others."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from sparknet.cli.train import find_modules_here, overrides_from
from sparknet.config import RunConfig, encode, load_config
from sparknet.reporting.console import PlainConsole
from sparknet.reporting.table import measured_facts, print_facts
from sparknet.spark.measure import Measurement, data_at, measure_source, measure_validation
from sparknet.spark.session import check_java, session_for
from sparknet.spark.sources import check_source
from sparknet.training.model import Model, load_model
from sparknet.training.run_dir import RunDir

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; everything that can be wrong without Spark is found before it starts."""
    run_dir: Path = arguments.run_dir.resolve()
    RunDir.check(run_dir)
    # Nothing of the run is changed, so its lock is not taken: several tests may go on at once.
    config = load_config(run_dir / "config.toml", overrides_from(arguments))
    find_modules_here()
    model = load_model(run_dir / "model")
    if arguments.data is not None:
        config = replace(config, data=data_at(config.data, arguments.data))
        check_source(config.data, validation=True)
    check_java()
    measured = _measure(config, model, run_dir, others=arguments.data is not None)
    kind = f"from {arguments.data}" if arguments.data is not None else "held out"
    facts = {**encode(measured), "kind": kind, "rows_per_second": measured.rows_per_second}
    print_facts(measured_facts(facts))
    return 0


def _measure(config: RunConfig, model: Model, run_dir: Path, *, others: bool) -> Measurement:
    began = time.monotonic()

    def note(message: str) -> None:
        elapsed = time.monotonic() - began
        screen.on_event({"event": "note", "message": message, "elapsed_seconds": elapsed})

    screen = PlainConsole(sys.stdout)
    note("starting Spark")
    with session_for(config, log_path=run_dir / "spark.log") as spark:
        note("testing")
        if others:
            return measure_source(spark, model, config)
        store = Path(config.data.store).resolve() if config.data.store else run_dir / "store"
        return measure_validation(spark, model, config, store=store)
