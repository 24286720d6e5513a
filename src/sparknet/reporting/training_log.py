"""The training log in the format and wording of the original SparkNet, `training_log_<millis>.txt`.

`12.3, i = 4: testing` is 12.3 seconds after the start, in round 4 of rounds that are counted from 0, as the
original counted them (the events of a run count from 1); lines outside a round leave `, i = 4` out. What reads the
original's log reads this one: it has the same messages in the same order, and some of ours between them.

The original's driver sent the weights out, and a round began with it. Here the workers hold them already, so both
`broadcasting weights` and `setting weights on workers` stand for the moment at which a round begins, and take no
time; `collecting weights` stands for the exchange, in which a worker waits for the others and sums.
"""

import itertools
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from sparknet.errors import RunDirError
from sparknet.reporting.record import Record, measures, number, text, texts, whole

__all__ = ["TrainingLog"]


class TrainingLog:
    """Writes one line or more for each event that the original would have logged.

    Safe to feed from several threads. Every line reaches the file whole as soon as it is written, so that a
    killed driver leaves a readable log.
    """

    def __init__(self, run_dir: Path, start_millis: int) -> None:
        """Open the log.

        Args:
            run_dir: an existing directory.
            start_millis: when the run began, in milliseconds since 1970; it names the file.

        Raises:
            RunDirError: the file cannot be written there.
        """
        self.path = run_dir / f"training_log_{start_millis}.txt"
        try:
            # unbuffered: a line is one write, and after a full disk nothing is left that close() would trip over
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise RunDirError(
                f"{self.path}: cannot be written: {error.strerror}; give a run directory that you may write to"
            ) from error
        self._lock = threading.Lock()
        self._latest_seconds = 0.0
        self._begun: int | None = None

    def on_event(self, record: Record) -> None:
        """Log a record of docs/events.md; kinds that the log does not tell are ignored.

        Raises:
            RunDirError: the file can no longer be written, as on a full disk.
        """
        tell = _LINES.get(text(record, "event"))
        if tell is not None:
            with self._lock:
                for elapsed_seconds, round_number, message in tell(record):
                    if message in _BEGINS and self._begun != round_number:
                        self._begun = round_number
                        for sent in ("broadcasting weights", "setting weights on workers"):
                            self._write(elapsed_seconds, round_number, sent)
                    self._write(elapsed_seconds, round_number, message)

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, elapsed_seconds: float, round_number: int | None, message: str) -> None:
        # `training` and `testing` are dated back by durations that workers measured: keep the file in order
        self._latest_seconds = max(self._latest_seconds, elapsed_seconds)
        # As the original's Scala prints it: 12.3 and not 12.300.
        moment = str(round(self._latest_seconds, 3))
        where = "" if round_number is None else f", i = {round_number}"
        try:
            self._file.write(f"{moment}{where}: {message}\n".encode())
        except OSError as error:
            raise RunDirError(
                f"{self.path}: cannot be written: {error.strerror}; make room on that disk"
            ) from error


# (elapsed seconds, round counted from 0 or None, message)
Line = tuple[float, int | None, str]

_BEGINS = ("testing", "training")
"""What is done first in a round; a round that is tested begins with it."""


def _note(record: Record) -> list[Line]:
    # One pass over the rows prepares both and computes the mean image.
    what = ("loading train data", "loading test data") if text(record, "message") == "preparing data" else ()
    return [(_now(record), None, message) for message in what or (text(record, "message"),)]


def _started(record: Record) -> list[Line]:
    workers, training, tested = (whole(record, key) for key in ("workers", "training_rows", "validation_rows"))
    messages = (
        f"numTrainData = {training}",
        f"numTestData = {tested}",
        f"trainPartitionSizes = {_partitions(training, workers)}",
        f"testPartitionSizes = {_partitions(tested, workers)}",
        f"net {text(record, 'net')}, {workers} workers",
    )
    return [(_now(record), None, message) for message in messages]


def _partitions(rows: int, workers: int) -> str:
    """Rows of each worker, as Scala prints an array; cut as an epoch is."""
    edges = [rows * edge // max(1, workers) for edge in range(workers + 1)]
    sizes = (high - low for low, high in itertools.pairwise(edges))
    return f"Array({', '.join(map(str, sizes))})"


def _round(record: Record) -> list[Line]:
    # A record comes when a round has ended, and tells how many are done; this one was the last of them.
    done, number_of = _now(record), whole(record, "round") - 1
    collecting = done - sum(_known(number(record, part)) for part in ("wait_seconds", "exchange_seconds"))
    began = collecting - _known(number(record, "step_seconds"))
    ended = f"collected weights of {whole(record, 'steps')} steps, loss = {number(record, 'loss'):.6g}"
    # Of a float32, whose further digits say nothing.
    weight = [f"weight = {number(record, 'weight'):.7g}"] if "weight" in record else []
    return [
        (began, number_of, "training"),
        (collecting, number_of, "collecting weights"),
        *((done, number_of, message) for message in (*weight, ended)),
    ]


def _evaluation(record: Record) -> list[Line]:
    # Tested after so many rounds is tested at the beginning of the next, which has their number, counted from 0.
    began, round_number = _now(record) - _known(number(record, "seconds")), whole(record, "round")
    return [(began, round_number, "testing"), (_now(record), round_number, _measured(record))]


def _resumed(record: Record) -> list[Line]:
    lines: list[Line] = [
        (_now(record), None, f"skipped damaged checkpoint {path}") for path in texts(record, "skipped")
    ]
    return [*lines, (_now(record), whole(record, "round"), f"resumed from {text(record, 'path')}")]


def _finished(record: Record) -> list[Line]:
    # Not in the original's words: its readers would take the last accuracy twice.
    return [(_now(record), whole(record, "rounds"), f"finished: {_named(measures(record))}")]


def _measured(record: Record) -> str:
    """The original's words where the net has an accuracy, else the net's outputs by name."""
    found = measures(record)
    if "accuracy" in found or not found:
        return f"{100 * number(record, 'accuracy'):.2f}% accuracy"
    return _named(found)


def _named(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:.6g}" for name, value in found.items())


def _in_round(message: str, key: str = "round") -> Callable[[Record], list[Line]]:
    return lambda record: [(_now(record), whole(record, key), message.format_map(_Shown(record)))]


def _outside(message: str) -> Callable[[Record], list[Line]]:
    return lambda record: [(_now(record), None, message.format_map(_Shown(record)))]


class _Shown(dict[str, str]):
    """A record's fields as printable text, missing ones as a dash."""

    def __init__(self, record: Record) -> None:
        # As text on one line: a reason with line breaks would make lines that no script can read.
        super().__init__({key: text(record, key) for key in record})

    def __missing__(self, key: str) -> str:
        return "-"


def _now(record: Record) -> float:
    return _known(number(record, "elapsed_seconds"))


def _known(value: float) -> float:
    return value if value >= 0 else 0.0  # NaN compares false


_LINES: dict[str, Callable[[Record], list[Line]]] = {
    "note": _note,
    "run_started": _started,
    "run_resumed": _resumed,
    "worker_joined": _in_round("worker {slot} on {host} joined with {device}"),
    "worker_lost": _in_round("worker {slot} on {host} lost: {reason}"),
    "worker_returned": _in_round("worker {slot} on {host} returned"),
    "round_aborted": _in_round("round aborted: {reason}"),
    "round": _round,
    "evaluation": _evaluation,
    "early_stop": _in_round("ends early: best {measure} = {best} in round {best_round}"),
    "checkpoint": _in_round("wrote checkpoint {path}"),
    "snapshot": _in_round("wrote {weights} and {state}"),
    "rollback": _in_round("rolled back from round {from_round}: {reason}", key="to_round"),
    "run_finished": _finished,
    "run_stopped": _outside("stopped: {reason}"),
    "run_failed": _outside("failed: {error}"),
}
