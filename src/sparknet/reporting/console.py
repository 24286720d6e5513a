"""A run on the screen: a calm live view in a terminal, plain lines anywhere else."""

import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol, TextIO

import rich.console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sparknet.reporting.area import draw_area, draw_line
from sparknet.reporting.notebook import NotebookConsole, display_in_notebook
from sparknet.reporting.progress import Progress
from sparknet.reporting.record import Record, text
from sparknet.reporting.result import result_rows
from sparknet.reporting.story import round_line, tell

__all__ = ["Console", "LiveConsole", "PlainConsole", "open_console"]

QUIET_SECONDS = 10.0
"""Plain lines: a committed round gets one when so much of the run's time has passed without any."""


class Console(Protocol):
    """What shows a run. `on_event` may be called from any thread."""

    def on_event(self, record: Record) -> None:
        """Show one record of docs/events.md; unknown kinds are ignored."""
        ...

    def print_result(self, result: Record, *, run_dir: str = "") -> None:
        """Close the live view and print the summary of `result.json`.

        Args:
            result: what that file holds.
            run_dir: where the run lies; not given: what `run_started` said.
        """
        ...

    def close(self) -> None:
        """Leave the screen as a plain terminal again; closing twice does nothing."""
        ...


def open_console(stream: TextIO | None = None, plain: bool | None = None) -> Console:
    """Open a console that suits the stream.

    Args:
        stream: where to write; standard output if not given, or the cell of a notebook.
        plain: True for plain lines, False for the live view; not given: live in a terminal that can show it.
    """
    target: TextIO = sys.stdout if stream is None else stream
    if stream is None and plain is None and (display := display_in_notebook()) is not None:
        return NotebookConsole(display)
    screen = rich.console.Console(file=target, highlight=False)
    if plain is None:
        # The sparkline and the signs cannot be written in other encodings.
        utf8 = (target.encoding or "").lower().replace("-", "") == "utf8"
        plain = not (target.isatty() and utf8) or screen.is_dumb_terminal
    return PlainConsole(target) if plain else LiveConsole(screen)


class PlainConsole:
    """One line per event worth it, and one per ten per cent of the rounds; never a control character."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`, which stays open."""
        self._stream = stream
        self._progress = Progress()
        self._lock = threading.Lock()
        self._told_round = 0
        self._told_seconds = 0.0

    def on_event(self, record: Record) -> None:
        """Print the lines that the record deserves."""
        with self._lock:
            self._progress.apply(record)
            lines = tell(record, self._progress)
            kind = text(record, "event")
            if kind == "round" and self._round_is_due():
                lines.append(round_line(self._progress))
            # An evaluation names its round, so that round needs no line of its own soon after.
            if kind == "evaluation" or (kind == "round" and lines):
                self._told_round, self._told_seconds = self._progress.done, self._progress.elapsed_seconds
            for line in lines:
                self._print(f"{line.elapsed_seconds:8.1f} s  {line.message}")

    def print_result(self, result: Record, *, run_dir: str = "") -> None:
        """Print the summary, one line each."""
        with self._lock:
            facts = result_rows(result, run_dir or self._progress.run_dir)
            width = max(15, *(len(name) + 2 for name, _ in facts))
            for name, value in facts:
                self._print(f"{name:<{width}}{value}")

    def close(self) -> None:
        """Do nothing: every line has been flushed."""

    def _round_is_due(self) -> bool:
        stride = max(1, math.ceil(self._progress.rounds / 10))
        silent_seconds = self._progress.elapsed_seconds - self._told_seconds
        rounds_since = self._progress.done - self._told_round
        # below zero after a rollback: the run is telling these rounds again
        return rounds_since >= stride or rounds_since < 0 or silent_seconds >= QUIET_SECONDS

    def _print(self, line: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        # a log under LANG=C cannot hold every letter of a host's or file's name: show a question mark
        print(line.encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)


class LiveConsole:
    """Lines that scroll by above a bar with the numbers that matter now."""

    def __init__(
        self,
        screen: rich.console.Console,
        *,
        animate: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Draw on a rich console.

        Args:
            screen: where to draw.
            animate: False prints the live area once, when it is closed: for pictures.
            clock: seconds; lets the elapsed time go on between two records.
        """
        self._screen = screen
        self._clock = clock
        self._animate = animate
        self._progress = Progress()
        self._heard_seconds = clock()
        self._state: Literal["new", "open", "closed"] = "new"
        # Two locks: the refresh thread draws the area under rich's own lock and then takes `_reading`, so nothing
        # may be printed, which takes rich's lock, while `_reading` is held.
        self._telling = threading.Lock()
        self._reading = threading.Lock()
        self._live = Live(console=screen, get_renderable=self._area, refresh_per_second=8)

    def on_event(self, record: Record) -> None:
        """Scroll the lines that the record deserves and bring the live area up to date."""
        with self._telling:
            with self._reading:
                self._progress.apply(record)
                self._heard_seconds = self._clock()
                lines = tell(record, self._progress)
            # Not in the constructor: a run that fails at once should leave no empty area.
            if self._animate and self._state == "new":
                self._live.start()
                self._state = "open"
            for line in lines:
                self._screen.print(draw_line(line))

    def print_result(self, result: Record, *, run_dir: str = "") -> None:
        """Close the live view and print the summary."""
        self.close()
        rows = Table.grid(padding=(0, 3))
        for name, value in result_rows(result, run_dir or self._progress.run_dir):
            style = "bold green" if name == "accuracy" else "default"
            rows.add_row(Text(name, style="dim"), Text(value, style=style, overflow="fold"))
        self._screen.print()
        self._screen.print(rows)
        self._screen.print()

    def close(self) -> None:
        """Leave the last state of the live area on the screen and end it."""
        with self._telling:
            if self._state == "open":
                self._live.stop()
            elif self._state == "new" and not self._animate:
                self._screen.print(self._area())
            self._state = "closed"

    def _area(self) -> Table:
        with self._reading:
            # Records come once a round; the clock must go on meanwhile.
            since = 0.0 if self._progress.ended else self._clock() - self._heard_seconds
            return draw_area(self._progress, self._progress.elapsed_seconds + since)
