"""Reading the fields of event records (one line of `events.jsonl`, see docs/events.md) for people to see.

A report must not end a run, and a record may come from an older or newer version: a field that is missing or of
another type reads as NaN, 0 or empty, and is shown as a dash.
"""

import math
from collections.abc import Mapping
from typing import cast

__all__ = [
    "Record",
    "counted",
    "flag",
    "headline",
    "measures",
    "number",
    "numbers",
    "percent",
    "seconds",
    "shown_measures",
    "text",
    "texts",
    "whole",
]

Record = Mapping[str, object]


def number(record: Record, key: str) -> float:
    """The field as a float; NaN if it is missing or no number."""
    value = record.get(key)
    # Python counts True as a number.
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def whole(record: Record, key: str) -> int:
    """The field as a whole number; 0 if it is missing or no finite number."""
    value = number(record, key)
    return int(value) if math.isfinite(value) else 0


def counted(count: int, noun: str) -> str:
    """A number with what it counts, which has an ordinary plural: `1 worker`, `2 workers`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def flag(record: Record, key: str) -> bool:
    """Whether the field is there and true."""
    return record.get(key) is True


def text(record: Record, key: str) -> str:
    """The field as one printable line.

    Runs of white space, line ends included, become one space and control characters are dropped: a reason may
    carry a stack trace, or escape codes that would move the cursor.
    """
    return _printable(str(record.get(key, "")))


def texts(record: Record, key: str) -> list[str]:
    """The field as a list of printable lines; empty if it is missing or no list."""
    return [_printable(str(item)) for item in _items(record, key)]


def numbers(record: Record, key: str) -> list[int]:
    """The field as a list of whole numbers; empty if it is missing or no list."""
    return [item for item in _items(record, key) if isinstance(item, int)]


def measures(record: Record) -> dict[str, float]:
    """What was measured, by name: accuracy, top5 and loss where they are known, then the net's other outputs.

    A result without any, of a run that holds out no rows, has its training loss.
    """
    found = {name: number(record, name) for name in ("accuracy", "top5", "loss") if name in record}
    others = record.get("outputs")
    if isinstance(others, Mapping):
        outputs = cast("Record", others)
        found |= {_printable(str(name)): number(outputs, name) for name in outputs}
    if not found and isinstance(record.get("training_loss"), float):
        # Where no rows are held out there is nothing else to tell.
        return {"training loss": number(record, "training_loss")}
    return found


def shown_measures(record: Record) -> list[tuple[str, str]]:
    """What was measured, as name and value for people: shares in per cent, anything else as a number."""
    return [_shown(name, value) for name, value in measures(record).items()]


def headline(record: Record) -> tuple[str, str]:
    """Name and value of what was measured if only one has a place: the accuracy, else the first; else a dash."""
    found = measures(record) or {"accuracy": math.nan}
    name = "accuracy" if "accuracy" in found else next(iter(found))
    return _shown(name, found[name])


def _shown(name: str, value: float) -> tuple[str, str]:
    if name == "top5" or name.startswith("accuracy"):
        return "top-5" if name == "top5" else name, percent(value)
    return name, f"{value:.4f}" if math.isfinite(value) else str(value)


def _items(record: Record, key: str) -> list[object]:
    value = record.get(key)
    return cast("list[object]", value) if isinstance(value, list) else []


def _printable(value: str) -> str:
    return "".join(character for character in " ".join(value.split()) if character.isprintable())


def percent(share: float, digits: int = 2) -> str:
    """A share of 0..1 as `97.22 %`, or a dash for NaN."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "-"


def seconds(value: float) -> str:
    """A duration as `8.3 s`, `4:05` or `2:13:20`, or a dash for NaN."""
    if not math.isfinite(value):
        return "-"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
