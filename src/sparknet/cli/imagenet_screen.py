"""How far `sparknet data imagenet` is: a bar in a terminal, a line now and then anywhere else."""

import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

import rich.console
import rich.progress

from sparknet.data.export.imagenet_plan import Split
from sparknet.reporting.console import PlainConsole
from sparknet.spark.preparing.imagenet import Progress

__all__ = ["BarScreen", "PlainScreen", "Screen", "open_screen"]

LINE_SECONDS = 10.0
"""How long nothing is said at most while the work goes on."""


class Screen(Protocol):
    """What tells how far it is. All may be called from any thread."""

    def note(self, message: str) -> None:
        """Print a line with the time."""
        ...

    def watch(self, split: Split, progress: Progress) -> None:
        """Show how far a split is."""
        ...

    def close(self) -> None:
        """Leave the screen as a plain terminal again."""
        ...


def open_screen(stream: TextIO | None = None) -> Screen:
    """A screen that suits the stream; standard error if none is given."""
    target: TextIO = sys.stderr if stream is None else stream
    console = rich.console.Console(file=target, highlight=False)
    utf8 = (target.encoding or "").lower().replace("-", "") == "utf8"
    return BarScreen(console) if target.isatty() and utf8 and not console.is_dumb_terminal else PlainScreen(target)


def _told(progress: Progress) -> tuple[int, int, str]:
    """Done, of how many, and what."""
    if progress.pieces_read < progress.pieces:
        return progress.pieces_read, progress.pieces, "parts of the archive read"
    return progress.chunks_done, progress.chunks, "chunks written"


class PlainScreen:
    """A line for each note, and one when nothing has been said for a while."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to `stream`, which stays open; `clock` gives seconds."""
        self._console = PlainConsole(stream)
        self._clock = clock
        self._began = self._told_at = clock()

    def note(self, message: str) -> None:
        """Print a line with the time."""
        self._told_at = self._clock()
        elapsed = self._told_at - self._began
        self._console.on_event({"event": "note", "message": message, "elapsed_seconds": elapsed})

    def watch(self, split: Split, progress: Progress) -> None:
        """Print a line, if nothing has been said for a while."""
        if self._clock() - self._told_at >= LINE_SECONDS:
            done, of, what = _told(progress)
            self.note(f"{split}: {done:,} of {of:,} {what}")

    def close(self) -> None:
        """Do nothing: every line has been flushed."""


class BarScreen:
    """Notes that scroll by above a bar."""

    def __init__(self, console: rich.console.Console) -> None:
        """Draw on a rich console."""
        self._began = time.monotonic()
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[what]}"),
            rich.progress.TimeElapsedColumn(),
            console=console,
        )
        self._task: rich.progress.TaskID | None = None

    def note(self, message: str) -> None:
        """Print a line with the time."""
        self._bar.console.print(
            f"{time.monotonic() - self._began:8.1f} s  {message}", markup=False, highlight=False, soft_wrap=True
        )

    def watch(self, split: Split, progress: Progress) -> None:
        """Bring the bar up to date."""
        done, of, what = _told(progress)
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(split, total=of, what=what)
        self._bar.update(self._task, description=split, completed=done, total=of, what=what)

    def close(self) -> None:
        """Leave the last state of the bar on the screen and end it."""
        self._bar.stop()
