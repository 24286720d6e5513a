"""Telling people about a run: the training log, the console, the closing summary.

Everything here is fed by the records of `events.jsonl` (docs/events.md) and by nothing else.
"""

from sparknet.reporting.console import Console, LiveConsole, PlainConsole, open_console
from sparknet.reporting.training_log import TrainingLog

__all__ = ["Console", "LiveConsole", "PlainConsole", "TrainingLog", "open_console"]
