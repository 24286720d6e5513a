"""The live area: a bar over the rounds and, below it, the numbers that matter now."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sparknet.reporting.progress import Progress
from sparknet.reporting.record import percent
from sparknet.reporting.story import Line

__all__ = ["draw_area", "draw_line", "sparkline"]

SPARKLINE_CELLS = 16
MOST_DOTS = 12
"""Up to so many workers are shown as one dot each; more would push the numbers off the line."""
GAP = "    "


def draw_area(progress: Progress, elapsed_seconds: float) -> Table:
    """Draw the bar and the numbers; before the run has started, a sign of life alone.

    Args:
        progress: the run's state.
        elapsed_seconds: since the run began, now and not when the last record was made.
    """
    area = Table.grid(expand=True)
    if progress.rounds == 0:
        waiting = Text(_clock_face(elapsed_seconds), style="dim")
        area.add_row(Spinner("dots", text=waiting, style="cyan"))
        return area
    area.add_row("")
    area.add_row(_bar(progress, elapsed_seconds))
    area.add_row(_numbers(progress))
    return area


def sparkline(values: Sequence[float], cells: int = SPARKLINE_CELLS) -> str:
    """Draw numbers as a row of at most `cells` bars, each the mean of its share of them, on a scale from 0.

    Values that are not finite are left out.
    """
    finite = [value for value in values if math.isfinite(value)]
    cells = min(cells, len(finite))
    edges = [len(finite) * cell // cells for cell in range(cells + 1)] if cells else []
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    top = max(means, default=0.0)
    # All zero: a share of nothing has no height.
    if top <= 0:
        return "▁" * len(means)
    # A scale from 0: on one from the least value noise would look like a fall.
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * max(0.0, mean) / top))] for mean in means)


def _bar(progress: Progress, elapsed_seconds: float) -> RenderableType:
    # Counted down between two rounds too, or the clock would jump.
    left = progress.remaining_seconds - (elapsed_seconds - progress.elapsed_seconds)
    times = _clock_face(elapsed_seconds)
    if not progress.ended and math.isfinite(left):
        times += f", {_clock_face(max(0.0, left))} left"
    done = min(progress.done, progress.rounds)
    bar = ProgressBar(total=progress.rounds, completed=done, complete_style="cyan", finished_style="green")
    row = Table.grid(padding=(0, 2, 0, 0), expand=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    row.add_column(no_wrap=True)
    counted = Text.assemble("round ", (f"{progress.done} ", "bold"), f"of {progress.rounds}")
    row.add_row(bar, counted, Text(times, style="dim"))
    return row


def _numbers(progress: Progress) -> Text:
    known = bool(progress.losses)
    pieces = [
        Text.assemble((f"{progress.measured[0]} ", "dim"), (progress.measured[1], "bold green")),
        Text.assemble(
            ("loss ", "dim"),
            (f"{progress.loss:.4f} " if known else "-", "bold"),
            (sparkline(progress.losses), "cyan"),
        ),
        Text.assemble((f"{progress.images_per_second:,.0f} " if known else "- ", "bold"), ("images/s", "dim")),
        Text.assemble((f"{percent(progress.sync_share, 0)} ", "bold"), ("sync", "dim")),
        _workers(progress),
    ]
    return Text(GAP).join(pieces)


def _workers(progress: Progress) -> Text:
    live = len(progress.live)
    workers = Text()
    if progress.workers <= MOST_DOTS:
        for slot in range(progress.workers):
            workers.append(*(("●", "green") if slot in progress.live else ("○", "red")))
        workers.append(" ")
    workers.append(f"{live}/{progress.workers} ", style="bold" if live >= progress.workers else "bold yellow")
    workers.append("workers", style="dim")
    return workers


def _clock_face(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_Style = tuple[Literal["·", "✓", "!", "✗", " "], str, str]

# sign, its colour, the message's style
_STYLES: dict[str, _Style] = {
    "quiet": ("·", "dim", "dim"),
    "plain": (" ", "default", "default"),
    "good": ("✓", "green", "default"),
    "warning": ("!", "yellow", "yellow"),
    "bad": ("✗", "red", "red"),
}


def draw_line(line: Line) -> Table:
    """One line of the story, with its sign and colour."""
    sign, colour, style = _STYLES[line.tone]
    row = Table.grid(padding=(0, 1))
    row.add_column(no_wrap=True)
    row.add_column(width=1)
    row.add_column(overflow="fold")
    row.add_row(
        Text(f"{line.elapsed_seconds:8.1f} s", style="dim"),
        Text(sign, style=colour),
        Text(line.message, style=style),
    )
    return row
