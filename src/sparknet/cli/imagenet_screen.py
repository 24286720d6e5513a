"""How far `sparknet data imagenet` is: a bar in a terminal, a line now and then anywhere else."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

import rich.console
import rich.progress

from sparknet.data.export.imagenet_plan import Split
from sparknet.reporting.console import PlainConsole
from sparknet.spark.preparing.imagenet import ChunkProgress

__all__ = ["Screen"]

LINE_SECONDS = 10.0
"""How long nothing is said at most while the work goes on, where there is no bar."""


class Screen:
    """Notes with the time, and how far a split is. All may be called from any thread."""

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to a stream, which stays open (standard error if none is given); `clock` gives seconds."""
        target: TextIO = sys.stderr if stream is None else stream
        console = rich.console.Console(file=target, highlight=False)
        utf8 = (target.encoding or "").lower().replace("-", "") == "utf8"
        # The bar's letters cannot be written in other encodings.
        terminal = target.isatty() and utf8 and not console.is_dumb_terminal
        self._clock = clock
        self._began = self._told_at = clock()
        self._plain = PlainConsole(target)
        self._task: rich.progress.TaskID | None = None
        columns = (
            "{task.description}",
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            "{task.fields[what]}",
            rich.progress.TimeElapsedColumn(),
        )
        self._bar = rich.progress.Progress(*columns, console=console) if terminal else None

    def note(self, message: str) -> None:
        """Print a line with the time."""
        self._told_at = self._clock()
        elapsed = self._told_at - self._began
        if self._bar:
            # Through the bar's console, which moves the bar down; no markup, for file names may hold brackets.
            line = f"{elapsed:8.1f} s  {message}"
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            self._plain.on_event({"event": "note", "message": message, "elapsed_seconds": elapsed})

    def watch(self, split: Split, progress: ChunkProgress) -> None:
        """Bring the bar up to date, or print a line if nothing has been said for a while."""
        # Two stages, one bar: no chunk is written before the shuffle has all of its rows.
        if progress.pieces_read < progress.pieces:
            done, of, what = progress.pieces_read, progress.pieces, "parts of the archive read"
        else:
            done, of, what = progress.chunks_done, progress.chunks, "chunks written"
        if self._bar:
            if self._task is None:  # not before: notes of the start should not have an empty bar below
                self._bar.start()
                self._task = self._bar.add_task(split, total=of, what=what)
            self._bar.update(self._task, description=split, completed=done, total=of, what=what)
        elif self._clock() - self._told_at >= LINE_SECONDS:
            self.note(f"{split}: {done:,} of {of:,} {what}")

    def close(self) -> None:
        """Leave the last state of the bar on the screen and end it."""
        if self._bar:
            self._bar.stop()
