"""`sparknet resume`: go on where a run broke off, also with another number of workers."""

import argparse

from sparknet.cli.train import NOT_ALLOWED, check_start, overrides_from, s3_endpoint_from, train_in
from sparknet.config import override
from sparknet.reporting.console import open_console
from sparknet.training.caffe_runs.open_run import open_run
from sparknet.training.run_files.run_dir import RunDir

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Resume; a finished run only shows its result again."""
    with RunDir.reopen(arguments.run_dir, s3_endpoint=s3_endpoint_from(arguments)) as run_dir:
        before = run_dir.load_config()
        config = override(before, [*NOT_ALLOWED, *overrides_from(arguments)])
        result = run_dir.load_result()
        # Not an error: a script that resumes until the run is finished may ask once too often.
        if result is not None:
            print(f"{run_dir.uri} is finished; to train it further, start a new run")
            console = open_console()
            console.print_result(result, run_dir=run_dir.uri)
            console.close()
            return 0
        start = open_run(config)
        sources = check_start(start)
        # Only after every check: settings that do not work must not stay in the run's directory.
        run_dir.save_config(start.config)
        return train_in(run_dir, start, sources)
