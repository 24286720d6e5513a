"""What the library tells beside its results: warnings of Python's `logging`, each once, on standard error."""

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["notes_on_screen"]


class _Once(logging.Handler):
    """Writes each message once: a file may be read several times on the way to a run."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write it."""
        message = record.getMessage()
        if message not in self._told:
            self._told.add(message)
            print(f"sparknet: {message}", file=sys.stderr)


@contextmanager
def notes_on_screen() -> Generator[None]:
    """Show what this package logs, as long as a command runs."""
    log, handler = logging.getLogger("sparknet"), _Once()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
