"""What is worth a line: event records told in words, the same words in a terminal and in a plain log."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from sparknet.reporting.progress import Progress
from sparknet.reporting.record import (
    Record,
    counted,
    flag,
    headline,
    number,
    percent,
    seconds,
    shown_measures,
    text,
    texts,
    whole,
)

__all__ = ["Line", "round_line", "tell"]

Tone = Literal["quiet", "plain", "good", "warning", "bad"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a run's story."""

    elapsed_seconds: float
    tone: Tone
    message: str
    """ASCII but for what users named, and without control characters."""


def tell(record: Record, progress: Progress) -> list[Line]:
    """The lines that a record deserves: none for a committed round, a checkpoint or an unknown kind.

    Args:
        record: one record of docs/events.md.
        progress: the run's state with this record applied.
    """
    teller = _TELLERS.get(text(record, "event"))
    if teller is None:
        return []
    return [Line(progress.elapsed_seconds, tone, message) for tone, message in teller(record, progress)]


def round_line(progress: Progress) -> Line:
    """Where the run stands, for those who have no progress bar."""
    message = (
        f"round {_of(progress.done, progress)}: loss {progress.loss:.4f}, "
        f"{progress.images_per_second:,.0f} images/s, {len(progress.live)}/{progress.workers} workers, "
        f"{percent(progress.sync_share, 0)} of the time synchronising"
    )
    return Line(progress.elapsed_seconds, "plain", message)


def _of(round_number: int, progress: Progress) -> str:
    """The round with the total, in a fixed width: lines below each other stay aligned."""
    width = len(str(progress.rounds))
    return f"{round_number:>{width}}/{progress.rounds}"


_MOST_MEASURES = 12

Told = Iterator[tuple[Tone, str]]


def _started(record: Record, progress: Progress) -> Told:
    held = whole(record, "validation_rows")
    yield (
        "plain",
        f"{text(record, 'name')}: {text(record, 'net')}, {whole(record, 'parameters'):,} parameters, "
        f"{whole(record, 'training_rows'):,} training rows, {f'{held:,}' if held else 'none'} held out"
        + (f" ({', '.join(texts(record, 'columns'))})" if texts(record, "columns") else ""),
    )
    steps = whole(record, "local_steps")
    # Rounds may end before, where something is due.
    most = "at most " if 0 < whole(record, "iterations") < progress.rounds * steps else ""
    yield (
        "plain",
        f"{counted(progress.workers, 'worker')}, {counted(progress.rounds, 'round')} of {most}"
        f"{counted(steps, 'step')}, "
        f"strategy {text(record, 'strategy')}; everything goes to {progress.run_dir}",
    )


def _note(record: Record, progress: Progress) -> Told:
    yield ("warning" if text(record, "level") == "warning" else "quiet"), text(record, "message")


def _resumed(record: Record, progress: Progress) -> Told:
    for path in texts(record, "skipped"):
        yield "warning", f"checkpoint {path} is damaged, skipped"
    yield "plain", f"resumed after round {whole(record, 'round')} from {text(record, 'path')}"


def _joined(record: Record, progress: Progress) -> Told:
    late = flag(record, "heal")
    tone: Tone = "good" if late else "quiet"
    device = text(record, "device")
    on = f" on {device}" if device.startswith(("GPU", "cpu,")) else ""
    yield tone, f"{_worker(record)} joined{on}{', copies the state of a live worker' if late else ''}"


def _lost(record: Record, progress: Progress) -> Told:
    others = f"{len(progress.live)} of {progress.workers} go on"
    yield "bad", f"{_worker(record)} lost in round {whole(record, 'round')}: {text(record, 'reason')}; {others}"


def _returned(record: Record, progress: Progress) -> Told:
    yield "good", f"{_worker(record)} was heard again in round {whole(record, 'round')}"


def _aborted(record: Record, progress: Progress) -> Told:
    yield "warning", f"round {whole(record, 'round')} is tried again: {text(record, 'reason')}"


def _evaluation(record: Record, progress: Progress) -> Told:
    every = [f"{name} {value}" for name, value in shown_measures(record)]
    # A net may measure each of a thousand classes: events and results have all.
    more = f", {len(every) - _MOST_MEASURES} more" if len(every) > _MOST_MEASURES else ""
    found = ", ".join(every[:_MOST_MEASURES]) + more
    yield (
        "good",
        f"round {_of(whole(record, 'round'), progress)}: {found} on {whole(record, 'rows'):,} held-out rows"
        + wrapped(record),
    )


def wrapped(record: Record) -> str:
    """What to say where rows were begun anew behind the last one."""
    rows, looked_at = whole(record, "rows"), whole(record, "looked_at")
    return f", gone through {looked_at / rows:.4g} times ({looked_at:,} looks)" if looked_at > rows > 0 else ""


def _stops_early(record: Record, progress: Progress) -> Told:
    yield (
        "plain",
        f"ends after round {whole(record, 'round')}: {text(record, 'measure')} has not improved since round "
        f"{whole(record, 'best_round')}, where it was {number(record, 'best'):.4f}",
    )


def _snapshot(record: Record, progress: Progress) -> Told:
    yield "quiet", f"wrote snapshot {text(record, 'weights')}"


def _rolled_back(record: Record, progress: Progress) -> Told:
    yield (
        "warning",
        f"back from round {whole(record, 'from_round')} to {whole(record, 'to_round')}: {text(record, 'reason')}",
    )


def _finished(record: Record, progress: Progress) -> Told:
    yield (
        "good",
        f"finished: {' '.join(headline(record))} after {counted(whole(record, 'rounds'), 'round')} in "
        f"{seconds(number(record, 'seconds'))}",
    )


def _stopped(record: Record, progress: Progress) -> Told:
    yield "warning", f"stopped after round {progress.done}: {text(record, 'reason')}"


def _failed(record: Record, progress: Progress) -> Told:
    yield "bad", f"failed after round {progress.done}: {text(record, 'error')}"


def _worker(record: Record) -> str:
    return f"worker {whole(record, 'slot')} on {text(record, 'host')}"


_TELLERS: dict[str, Callable[[Record, Progress], Told]] = {
    "run_started": _started,
    "note": _note,
    "run_resumed": _resumed,
    "worker_joined": _joined,
    "worker_lost": _lost,
    "worker_returned": _returned,
    "round_aborted": _aborted,
    "evaluation": _evaluation,
    "early_stop": _stops_early,
    "snapshot": _snapshot,
    "rollback": _rolled_back,
    "run_finished": _finished,
    "run_stopped": _stopped,
    "run_failed": _failed,
}
