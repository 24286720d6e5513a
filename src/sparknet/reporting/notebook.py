"""A run in the cell of a notebook: the lines so far and the numbers that matter now, drawn anew in one place."""

import io
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import rich.console
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sparknet.reporting.area import draw_area, draw_line
from sparknet.reporting.progress import Progress
from sparknet.reporting.record import Record
from sparknet.reporting.result import result_rows
from sparknet.reporting.story import Line, tell

__all__ = ["NotebookConsole", "display_in_notebook"]

Display = Callable[[str], None]
"""Shows HTML in the place where it showed some before."""

_MOST_LINES = 12
_SECONDS_BETWEEN = 0.25
"""A notebook keeps what it is sent, and a browser draws it: more often would be work for nobody's eyes."""
_WIDTH = 100
_FORMAT = "<pre style='line-height: 1.25; white-space: pre'>{code}</pre>"


def display_in_notebook() -> Display | None:
    """How to show HTML in the cell that is running; None: this is no notebook."""
    # Only what a notebook has imported already: IPython is not among our dependencies, and takes a second.
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if type(shell).__name__ != "ZMQInteractiveShell":
        return None
    from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

    handle: Any = display(HTML(""), display_id=True)
    return lambda html: handle.update(HTML(html))


class NotebookConsole:
    """The last lines above the live area, as HTML.

    Args:
        display: shows it.
        clock: seconds.
    """

    def __init__(self, display: Display, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._display = display
        self._clock = clock
        self._progress = Progress()
        self._lines: deque[Line] = deque(maxlen=_MOST_LINES)
        self._shown_seconds = float("-inf")
        self._lock = threading.Lock()

    def on_event(self, record: Record) -> None:
        """Take in a record, and show it unless something was shown a moment ago."""
        with self._lock:
            self._progress.apply(record)
            lines = tell(record, self._progress)
            self._lines.extend(lines)
            # A line is worth a look, and the end above all.
            if lines or self._clock() - self._shown_seconds >= _SECONDS_BETWEEN:
                self._show(draw_area(self._progress, self._progress.elapsed_seconds))

    def print_result(self, result: Record, *, run_dir: str = "") -> None:
        """Show the summary in place of the live area."""
        rows = Table.grid(padding=(0, 3))
        for name, value in result_rows(result, run_dir or self._progress.run_dir):
            rows.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
        with self._lock:
            self._show(rows)

    def close(self) -> None:
        """Show how things stand."""
        with self._lock:
            self._show(draw_area(self._progress, self._progress.elapsed_seconds))

    def _show(self, below: RenderableType) -> None:
        self._shown_seconds = self._clock()
        # Nothing is written but the record, from which the HTML is made.
        screen = rich.console.Console(
            file=io.StringIO(), record=True, width=_WIDTH, color_system="truecolor", force_jupyter=False
        )
        screen.print(Group(*(draw_line(line) for line in self._lines), below))
        html = screen.export_html(inline_styles=True, code_format=_FORMAT)
        # Black is what rich takes for the colour of plain text; a notebook may be a dark one.
        self._display(html.replace("color: #000000; text-decoration-color: #000000", "color: inherit"))
