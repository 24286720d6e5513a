"""A run's closing summary: `result.json` for people."""

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
        ("rounds", f"{whole(result, 'rounds'):,} with {counted(whole(result, 'workers'), 'worker')}"),
        ("samples", f"{whole(result, 'samples'):,}"),
        ("time", seconds(duration)),
        ("speed", f"{number(result, 'images_per_second'):,.0f} images/s"),
        ("synchronising", f"{seconds(sync)}, {percent(share, 1)} of the time"),
        ("failures", f"{whole(result, 'failures')}"),
    ]
    chosen = whole(result, "model_round")
    # Of the last round nothing need be said: it is what everybody expects.
    of_round = f" (of round {chosen})" if 0 < chosen < whole(result, "rounds") else ""
    return [*rows, ("model", f"{run_dir.rstrip('/')}/model{of_round}")] if run_dir else rows
