"""A picture of how accuracy grew, over time and over rounds, from training logs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparknet.errors import DataError, MissingDependency, UsageError
from sparknet.reporting.log_reader import Accuracy
from sparknet.whole_files import whole_file

__all__ = ["draw_accuracy"]

_FORMS = {".svg": "svg", ".png": "png", ".pdf": "pdf"}
_DAY, _HOUR, _MINUTE = 86400.0, 3600.0, 60.0


def draw_accuracy(logs: Mapping[str, Sequence[Accuracy]], path: Path) -> None:
    """Draw the tests of several logs, each as a curve, on the left over time and on the right over rounds.

    Args:
        logs: the tests of each, by the name in the legend.
        path: what is written: SVG, PNG or PDF by its end.

    Raises:
        UsageError: the path ends otherwise.
        DataError: a log has no tests, or the file cannot be written.
        MissingDependency: matplotlib is not installed.
    """
    form = _FORMS.get(path.suffix.lower())
    if form is None:
        raise UsageError(f"{path} ends in {path.suffix!r}; the picture can be {', '.join(_FORMS)}: name it so")
    for name, tests in logs.items():
        if not tests:
            raise DataError(f"{name}: tells of no accuracy; give a training log of a run that was tested")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("pictures need matplotlib: pip install 'sparknet[plot]'") from error
    # The same logs make the same bytes: names in an SVG are else made of random numbers.
    with rc_context({"svg.hashsalt": "sparknet", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        unit, seconds = _unit(max(test.seconds for tests in logs.values() for test in tests))
        for name, tests in logs.items():
            percents = [test.percent for test in tests]
            # A run that was tested once is a point.
            style = {"marker": "o", "markersize": 3, "linewidth": 1.5, "label": name}
            left.plot([test.seconds / seconds for test in tests], percents, **style)
            right.plot([test.round for test in tests], percents, **style)
        left.set(xlabel=f"time ({unit})", ylabel="accuracy (%)")
        right.set(xlabel="round")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.set_xlim(left=0)
        right.legend(loc="lower right", fontsize="small")
        metadata = {"Date": None} if form == "svg" else {"CreationDate": None} if form == "pdf" else {}
        try:
            with whole_file(path) as file:
                figure.savefig(file, format=form, metadata=metadata, dpi=150)
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}; name another place") from error


def _unit(longest_seconds: float) -> tuple[str, float]:
    """A unit in which the axis of time has short numbers, and its seconds."""
    if longest_seconds < 5 * _MINUTE:
        return "seconds", 1.0
    if longest_seconds < 3 * _HOUR:
        return "minutes", _MINUTE
    return ("hours", _HOUR) if longest_seconds < 3 * _DAY else ("days", _DAY)
