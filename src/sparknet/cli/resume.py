"""`sparknet resume`: go on where a run broke off, also with another number of workers."""

import argparse

from sparknet.cli.train import NOT_ALLOWED, check_start, overrides_from, train_in
from sparknet.config import RunConfig, override
from sparknet.errors import ConfigError
from sparknet.reporting.console import open_console
from sparknet.training.caffe_runs.open_run import open_run
from sparknet.training.run_files.run_dir import RunDir

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Resume; a finished run only shows its result again."""
    with RunDir.reopen(arguments.run_dir) as run_dir:
        before = run_dir.load_config()
        config = override(before, [*NOT_ALLOWED, *overrides_from(arguments)])
        result = run_dir.load_result()
        # Not an error: a script that resumes until the run is finished may ask once too often.
        if result is not None:
            print(f"{run_dir.path} is finished; to train it further, start a new run")
            console = open_console()
            console.print_result(result, run_dir=str(run_dir.path))
            console.close()
            return 0
        _check_iterations(before, config)
        start = open_run(config)
        sources = check_start(start)
        # Only after every check: settings that do not work must not stay in the run's directory.
        run_dir.save_config(start.config)
        return train_in(run_dir, start, sources)


def _check_iterations(before: RunConfig, now: RunConfig) -> None:
    """A Caffe solver counts iterations, and a run knows them as rounds of so many: they must not shift.

    Raises:
        ConfigError: the length of a round was changed.
    """
    old, new = before.sync.local_steps, now.sync.local_steps
    if now.solver.prototxt and old != new:
        raise ConfigError(
            f"sync.local_steps is {new} and the run has {old}; with a Caffe solver it must stay, for rates and "
            "snapshots go by the iteration: leave it, or start a new run from a snapshot with --snapshot"
        )
