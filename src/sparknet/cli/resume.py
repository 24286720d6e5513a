"""`sparknet resume`: go on where a run broke off, also with another number of workers."""

import argparse

from sparknet.cli.train import check_start, overrides_from, train_in
from sparknet.config import override
from sparknet.reporting.console import open_console
from sparknet.training.run_dir import RunDir

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Resume; a finished run only shows its result again."""
    with RunDir.reopen(arguments.run_dir) as run_dir:
        config = override(run_dir.load_config(), overrides_from(arguments))
        result = run_dir.load_result()
        if result is not None:
            print(f"{run_dir.path} is finished; to train it further, start a new run")
            console = open_console()
            console.print_result(result, run_dir=str(run_dir.path))
            console.close()
            return 0
        check_start(config)
        run_dir.save_config(config)
        return train_in(run_dir, config)
