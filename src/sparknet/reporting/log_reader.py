"""Reading a training log back: the original SparkNet's, those of its forks, and ours."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparknet.errors import DataError

__all__ = ["Accuracy", "Entry", "accuracies", "read_log"]

# A fork writes the date and two blanks before each line; Scala prints a float of a small number as 5.0E-4.
_LINE = re.compile(r"(?:.*\S  )?(\d+(?:\.\d+)?(?:E-?\d+)?)(?:, i = (\d+))?: (.*)")
# Logs that we wrote before they had the original's words say "percent".
_ACCURACY = re.compile(r"(\d+(?:\.\d+)?)(?:%| percent) accuracy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of a log."""

    seconds: float
    """Since the start."""
    round: int | None
    """Counted from 0; None outside rounds."""
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """One test."""

    seconds: float
    round: int
    """The test was made before this round was trained."""
    percent: float


def read_log(path: Path) -> Iterator[Entry]:
    """Yield the entries of a training log; lines of another form, as of a program that wrote into it, are left out.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; give a training_log_*.txt") from error
    for line in text.splitlines():
        if found := _LINE.fullmatch(line):
            number = int(found[2]) if found[2] else None
            yield Entry(seconds=float(found[1]), round=number, message=found[3])


def accuracies(entries: Iterable[Entry]) -> list[Accuracy]:
    """The tests that a log tells of, in their order."""
    found = [(entry, _ACCURACY.fullmatch(entry.message)) for entry in entries]
    return [
        Accuracy(seconds=entry.seconds, round=entry.round or 0, percent=float(match[1]))
        for entry, match in found
        if match
    ]
