"""`sparknet train`, and what it shares with `sparknet resume`."""

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

from sparknet.config import load_config
from sparknet.data.sources.opening import OpenedSources, open_sources
from sparknet.data.sources.registry import find_format
from sparknet.errors import UsageError
from sparknet.reporting.console import open_console
from sparknet.reporting.training_log import TrainingLog
from sparknet.spark.devices.preflight import check_this_machine
from sparknet.spark.jobs.session import check_java
from sparknet.spark.jobs.settings import may_be_submitted
from sparknet.spark.running.run import train
from sparknet.training.caffe_runs.open_run import RunStart, open_run
from sparknet.training.caffe_runs.preflight import check_caffe
from sparknet.training.caffe_runs.run_config import CaffeFiles, solver_run
from sparknet.training.objectives.build_objective import check_net
from sparknet.training.objectives.label_check import check_first_labels
from sparknet.training.objectives.optimiser import check_solver
from sparknet.training.objectives.preprocessing import check_preprocessing
from sparknet.training.run_files.run_dir import RunDir

__all__ = [
    "NOT_ALLOWED",
    "check_start",
    "find_modules_here",
    "overrides_from",
    "run",
    "s3_endpoint_from",
    "train_in",
]

NOT_ALLOWED = ("net.allow_python_layers=false",)
"""Before what is typed: that a run's files name code is no leave to run it, for they may come from anywhere."""


def run(arguments: argparse.Namespace) -> int:
    """Start a new run."""
    start = _start_from(arguments)
    config = start.config
    sources = check_start(start)
    rows = sources.schema(config.data) if sources else None
    # Built here if the rows tell their shape, so that a net that does not fit them costs no Spark start.
    start = check_caffe(start, rows)
    if start.built is not None and sources is not None:
        check_first_labels(start.built[1], sources, config.data)
    if rows is not None and not config.net.prototxt:
        check_preprocessing(config, None, rows)
    # Only now: what is wrong at first sight leaves no directory behind.
    with RunDir.create(arguments.run_dir or _new_run_dir(config.run.name), config) as run_dir:
        return train_in(run_dir, start, sources)


def _new_run_dir(name: str) -> Path:
    """A directory that is not there yet, also for the second run within a second."""
    path = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    others = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(one for one in itertools.chain([path], others) if not one.exists())


def _start_from(arguments: argparse.Namespace) -> RunStart:
    overrides = overrides_from(arguments)
    given = {
        "--solver": arguments.solver,
        "--net": arguments.net,
        "--data": arguments.data,
        "--weights": arguments.weights,
        "--snapshot": arguments.snapshot,
    }
    if arguments.config is not None:
        beside = [option for option, value in given.items() if value]
        if beside:
            raise UsageError(
                f"{arguments.config} and {', '.join(beside)} are given; a run is told by a configuration file or "
                "by Caffe's files: leave one of them out"
            )
        # Whoever comes from Caffe types this first; as TOML the file would fail at some odd line.
        if arguments.config.suffix == ".prototxt":
            raise UsageError(
                f"{arguments.config} is a prototxt; CONFIG is a TOML file: give a solver as --solver "
                f"{arguments.config}"
            )
        return open_run(load_config(arguments.config, overrides))
    if not given["--solver"]:
        raise UsageError("--solver is missing; sparknet train takes CONFIG, or --solver: give a solver prototxt")
    if arguments.weights and arguments.snapshot:
        raise UsageError(
            f"--weights {arguments.weights} and --snapshot {arguments.snapshot} are given; a snapshot brings its "
            "own weights: give one of the two"
        )
    files = CaffeFiles(
        solver=arguments.solver, net=arguments.net, weights=arguments.weights, snapshot=arguments.snapshot
    )
    return solver_run(files, arguments.data, overrides)


def overrides_from(arguments: argparse.Namespace) -> list[str]:
    """The `section.key=value` settings that the command line gives; `--set` comes last and wins."""
    settings: list[str] = []
    if arguments.workers is not None:
        settings.append(f"run.workers={arguments.workers}")
    if arguments.master is not None:
        settings.append(f"cluster.master={arguments.master!r}")
    if arguments.allow_python_layers:
        settings.append("net.allow_python_layers=true")
    return [*settings, *arguments.set]


def s3_endpoint_from(arguments: argparse.Namespace) -> str:
    """The server of a run directory on S3, as `--set data.s3_endpoint=` names it before a configuration is read."""
    settings = (setting.partition("=") for setting in arguments.set)
    given = [value.strip().strip("'\"") for key, _, value in settings if key.strip() == "data.s3_endpoint"]
    return given[-1] if given else ""


def check_start(start: RunStart) -> OpenedSources | None:
    """Find what is wrong at first sight, before a run directory is made and Spark starts; give what was opened.

    Files that the hosts alone have are opened there, later.

    Raises:
        NetError: there is no such net.
        ConfigError: there is no such optimiser, loss or measure, or it does not take its arguments; or there are
            no GPUs here for the workers.
        DataError: a path is missing or damaged.
        MissingDependency: there is no Java.
    """
    find_modules_here()
    check_net(start.recipe)
    check_solver(start.recipe)
    # Without a master of ours or of a submitter's the workers are on this machine.
    if not start.config.cluster.master and not may_be_submitted():
        check_this_machine(start.config)
    find_format(start.config.data)
    sources = None if start.config.data.on_hosts else open_sources(start.config.data)
    # Last: it starts a process, and the others are quicker to tell what is wrong.
    check_java()
    return sources


def find_modules_here() -> None:
    """Let modules named in `net.name` lie in the current directory, as with `python -m`; workers inherit it."""
    here = str(Path.cwd())
    # The console script puts its own directory there, not the user's.
    if here not in sys.path:
        sys.path.insert(0, here)
    inherited = os.environ.get("PYTHONPATH", "")
    if here not in inherited.split(os.pathsep):
        # By the environment, which Spark hands on to the Python workers of an embedded session.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, inherited]))


def train_in(run_dir: RunDir, start: RunStart, sources: OpenedSources | None) -> int:
    """Train in an open run directory, showing progress; the exit code."""
    console = open_console()
    # A file for each start, as the original had: a resumed run does not write into the log of the one before.
    log = TrainingLog(run_dir.path, int(time.time() * 1000))
    try:
        # The file first: at Ctrl-C under spark-submit the screen is gone before we are.
        train(start, run_dir, sources=sources, observers=[log.on_event, console.on_event])
        # From the file, so that the screen shows what was kept.
        console.print_result(run_dir.load_result() or {}, run_dir=run_dir.uri)
    except KeyboardInterrupt:
        console.close()
        print(f"go on with: sparknet resume {run_dir.uri}", file=sys.stderr)
        if run_dir.is_remote:
            left = f"what a second interrupt leaves out stays in {run_dir.path}"
            print(f"sending what is not there yet; {left}", file=sys.stderr)
        raise
    finally:
        console.close()
        log.close()
    return 0
