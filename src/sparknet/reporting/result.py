"""A run's closing summary: `result.json` for people."""

from collections.abc import Mapping
from typing import cast

from sparknet.reporting.record import Record, counted, number, percent, seconds, shown_measures, whole

__all__ = ["result_rows"]


def result_rows(result: Record, run_dir: str) -> list[tuple[str, str]]:
    """Name and value of each line of the summary; ASCII but for the directory's name.

    Args:
        result: what `result.json` holds.
        run_dir: the run directory; empty if there is none.
    """
    duration, sync = number(result, "seconds"), number(result, "sync_seconds")
    share = sync / duration if duration > 0 else float("nan")
    rows = [
        *(shown_measures(result) or [("accuracy", "-")]),
        ("rounds", _rounds(result)),
        ("samples", _samples(result)),
        ("time", seconds(duration)),
        ("speed", f"{number(result, 'images_per_second'):,.0f} images/s"),
        ("synchronising", f"{seconds(sync)}, {percent(share, 1)} of the time"),
        ("failures", f"{whole(result, 'failures')}"),
    ]
    chosen = whole(result, "model_round")
    # Of the last round nothing need be said: it is what everybody expects.
    of_round = f" (of round {chosen})" if 0 < chosen < whole(result, "rounds") else ""
    return [*rows, ("model", f"{run_dir.rstrip('/')}/model{of_round}")] if run_dir else rows


def _rounds(result: Record) -> str:
    """The rounds, with the workers that took part."""
    asked = whole(result, "workers")
    found = cast("Mapping[str, int]", result.get("rounds_by_workers") or {})
    seen = {int(workers): rounds for workers, rounds in found.items()}
    total = f"{whole(result, 'rounds'):,}"
    if len(seen) > 1:
        parts = ", ".join(f"{seen[workers]:,} with {workers}" for workers in sorted(seen, reverse=True))
        return f"{total}: {parts} of {counted(asked, 'worker')}"
    workers = next(iter(seen), asked)
    return f"{total} with {counted(workers, 'worker')}" + (f" of {asked}" if workers != asked else "")


def _samples(result: Record) -> str:
    samples, asked = f"{whole(result, 'samples'):,}", result.get("asked_epochs")
    if "epochs" not in result:
        return samples
    of = f" of {asked:g}" if isinstance(asked, float) else ""
    return f"{samples}, {number(result, 'epochs'):.1f}{of} passes over the rows"
