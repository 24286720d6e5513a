"""`sparknet plot`: accuracy over time and rounds, from training logs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sparknet.errors import UsageError
from sparknet.reporting.accuracy_plot import draw_accuracy
from sparknet.reporting.log_reader import accuracies, read_log

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Draw the picture."""
    # Whoever names a log and its run's directory means one curve.
    files = list(dict.fromkeys(file for path in arguments.logs for file in _logs_of(path)))
    logs = {name: accuracies(read_log(file)) for name, file in zip(_names(files), files, strict=True)}
    draw_accuracy(logs, arguments.output)
    print(arguments.output)
    return 0


def _logs_of(path: Path) -> list[Path]:
    """The file itself; of a run directory all its logs, one for each start."""
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("training_log_*.txt"))
    if not found:
        raise UsageError(f"{path} holds no training_log_*.txt; give a log, or a run directory")
    return found


def _names(files: Sequence[Path]) -> list[str]:
    """What each is called in the picture: a run by its directory, other logs by their names, if they differ."""
    short = [file.resolve().parent.name if (file.parent / "events.jsonl").exists() else file.stem for file in files]
    return [name if short.count(name) == 1 else str(file) for name, file in zip(short, files, strict=True)]
