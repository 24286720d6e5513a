"""Names and values below each other: quiet colours in a terminal, plain aligned lines anywhere else."""

import sys
from collections.abc import Iterable, Mapping
from typing import Literal, TextIO

import rich.console
from rich.table import Table
from rich.text import Text

from sparknet.reporting.record import Record, number, seconds, shown_measures, text, whole

__all__ = ["Mark", "caffe_scores", "measured_facts", "print_checks", "print_facts"]

Mark = Literal["ok", "warning", "failed", "skipped"]

_SIGNS: Mapping[Mark, tuple[str, str, str]] = {
    "ok": ("ok", "✓", "green"),
    "warning": ("warn", "!", "yellow"),
    "failed": ("FAIL", "✗", "red"),
    "skipped": ("-", "·", "dim"),
}
"""Word in plain lines, sign and colour in a terminal."""


def measured_facts(record: Record) -> list[tuple[str, str]]:
    """Name and value of each line that tells what a model was worth on some rows.

    Args:
        record: rows, what was measured, seconds, rows_per_second and, if some were damaged, skipped.
    """
    skipped = whole(record, "skipped") if record.get("skipped") else 0
    damaged = [("damaged", f"{skipped:,} rows left out")] if skipped else []
    return [
        ("rows", f"{whole(record, 'rows'):,} {text(record, 'kind')}".rstrip()),
        *damaged,
        *shown_measures(record),
        ("time", seconds(number(record, "seconds"))),
        ("speed", f"{number(record, 'rows_per_second'):,.0f} rows/s"),
    ]


def caffe_scores(
    measured: Mapping[str, float], loss_weights: Mapping[str, float], counts: Mapping[str, int] | None = None
) -> list[str]:
    """The lines with which `caffe test` ends: the whole loss, then each output in the order of its name.

    Args:
        measured: mean of each output; of one with several numbers `NAME.0`, `NAME.1` and so on.
        loss_weights: of the outputs that are in the net's loss.
        counts: of the outputs, how many numbers they have; not given: one each.
    """
    loss = sum(weight * measured[name] for name, weight in loss_weights.items() if name in measured)
    lines = [f"Loss: {loss:g}"]
    # By name, as Caffe's set of outputs is ordered: scripts read these lines.
    for name, count in sorted((counts or dict.fromkeys(measured, 1)).items()):
        weight = loss_weights.get(name)
        for key in [name] if count == 1 else [f"{name}.{place}" for place in range(count)]:
            value = measured[key]
            lines.append(f"{name} = {value:g}" + (f" (* {weight:g} = {weight * value:g} loss)" if weight else ""))
    return lines


def print_facts(facts: Iterable[tuple[str, str]], stream: TextIO | None = None) -> None:
    """Print names and values; the accuracy stands out."""
    target = sys.stdout if stream is None else stream
    screen = _screen(target)
    if screen is None:
        facts = list(facts)
        width = max(15, *(len(name) + 2 for name, _ in facts))
        for name, value in facts:
            _print_plain(f"{name:<{width}}{value}", target)
        return
    grid = Table.grid(padding=(0, 3))
    for name, value in facts:
        style = "bold green" if name == "accuracy" else "default"
        grid.add_row(Text(name, style="dim"), Text(value, style=style, overflow="fold"))
    screen.print()
    screen.print(grid)
    screen.print()


def print_checks(checks: Iterable[tuple[Mark, str, str]], stream: TextIO | None = None) -> None:
    """Print (mark, name, finding) as they come, so that slow checks do not hold up the lines before them."""
    target = sys.stdout if stream is None else stream
    screen = _screen(target)
    for mark, name, finding in checks:
        word, sign, colour = _SIGNS[mark]
        if screen is None:
            _print_plain(f"{word:<6}{name:<10}{finding}", target)
            continue
        row = Table.grid(padding=(0, 2))
        row.add_column(width=1)
        row.add_column(width=9)
        row.add_column(overflow="fold")
        style = colour if mark != "ok" else "default"
        row.add_row(Text(sign, style=colour), Text(name, style="dim"), Text(finding, style=style))
        screen.print(row)


def _screen(stream: TextIO) -> rich.console.Console | None:
    """A rich console where the stream is a terminal that can show it."""
    screen = rich.console.Console(file=stream, highlight=False)
    utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
    return screen if stream.isatty() and utf8 and not screen.is_dumb_terminal else None


def _print_plain(line: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    # a log under LANG=C cannot hold every letter of a host's or file's name: show a question mark
    print(line.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
