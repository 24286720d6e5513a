"""The training log holds the original's line format."""

import re
from pathlib import Path

import pytest

from sparknet.data.loading.sampling_order import Order
from sparknet.errors import RunDirError
from sparknet.reporting import TrainingLog


def event(kind: str, elapsed: float, /, **fields: object) -> dict[str, object]:
    return {"elapsed_seconds": elapsed, "event": kind, **fields}


def log_of(tmp_path: Path, *records: dict[str, object]) -> list[str]:
    with TrainingLog(tmp_path, 1_700_000_000_123) as log:
        for record in records:
            log.on_event(record)
    return log.path.read_text(encoding="utf-8").splitlines()


def test_the_file_is_named_after_the_start(tmp_path):
    log_of(tmp_path)
    assert (tmp_path / "training_log_1700000000123.txt").exists()


def test_a_run_is_told_in_the_originals_words_and_order(tmp_path):
    """Two rounds, tested before the first and after the second; the original counted rounds from 0."""
    part = {"steps": 20, "loss": 0.5, "step_seconds": 1.0, "wait_seconds": 0.2, "exchange_seconds": 0.3}
    lines = log_of(
        tmp_path,
        event("note", 2.0, message="preparing data"),
        event("run_started", 3.0, net="lenet", workers=3, training_rows=50000, validation_rows=10000),
        event("evaluation", 5.5, round=0, accuracy=0.1, seconds=1.5),
        event("round", 7.0, round=1, weight=-0.0034999999, **part),
        event("round", 8.5, round=2, weight=0.10000000149011612, **part),
        event("evaluation", 9.5, round=2, accuracy=0.75214, seconds=0.5),
        event("run_finished", 9.6, rounds=2, accuracy=0.75214),
    )
    assert lines == [
        "2.0: loading train data",
        "2.0: loading test data",
        "3.0: numTrainData = 50000",
        "3.0: numTestData = 10000",
        "3.0: trainPartitionSizes = Array(16666, 16667, 16667)",
        "3.0: testPartitionSizes = Array(3333, 3333, 3334)",
        "3.0: net lenet, 3 workers",
        "4.0, i = 0: broadcasting weights",
        "4.0, i = 0: setting weights on workers",
        "4.0, i = 0: testing",
        "5.5, i = 0: 10.00% accuracy",
        "5.5, i = 0: training",
        "6.5, i = 0: collecting weights",
        "7.0, i = 0: weight = -0.0035",
        "7.0, i = 0: collected weights of 20 steps, loss = 0.5",
        "7.0, i = 1: broadcasting weights",
        "7.0, i = 1: setting weights on workers",
        "7.0, i = 1: training",
        "8.0, i = 1: collecting weights",
        "8.5, i = 1: weight = 0.1",
        "8.5, i = 1: collected weights of 20 steps, loss = 0.5",
        "9.0, i = 2: broadcasting weights",
        "9.0, i = 2: setting weights on workers",
        "9.0, i = 2: testing",
        "9.5, i = 2: 75.21% accuracy",
        "9.6, i = 2: finished: accuracy = 0.75214",
    ]


def test_partitions_are_those_of_an_epoch(tmp_path):
    rows, workers = 1003, 4
    sizes = [len(Order(0, [600, 403], workers, slot)) for slot in range(workers)]
    lines = log_of(tmp_path, event("run_started", 1.0, workers=workers, training_rows=rows, validation_rows=0))
    assert f"1.0: trainPartitionSizes = Array({', '.join(map(str, sizes))})" in lines
    assert "1.0: testPartitionSizes = Array(0, 0, 0, 0)" in lines


def test_a_net_without_an_accuracy_is_told_by_its_outputs(tmp_path):
    lines = log_of(
        tmp_path,
        event("evaluation", 1.0, round=4, loss=0.25, outputs={"loss1/top-5": 0.5}, seconds=0.5),
        event("snapshot", 1.5, round=4, iteration=40, weights="a.caffemodel", state="a.solverstate"),
        event("run_finished", 2.0, rounds=4, loss=0.125),
    )
    assert lines[3:] == [
        "1.0, i = 4: loss = 0.25, loss1/top-5 = 0.5",
        "1.5, i = 4: wrote a.caffemodel and a.solverstate",
        "2.0, i = 4: finished: loss = 0.125",
    ]


def test_every_line_parses_and_times_never_go_back(tmp_path):
    lines = log_of(
        tmp_path,
        event("run_started", 1.0, net="lenet", workers=2, training_rows=10, validation_rows=5),
        event("worker_joined", 1.25, slot=0, host="h", round=1),
        event("worker_lost", 2.0, slot=0, host="h", round=1, reason="killed\nby a signal"),
        event("worker_returned", 2.1, slot=0, host="h", round=1),
        event("round_aborted", 2.2, round=1, reason="a peer left"),
        event("round", 2.3, round=1, steps=2, loss=1.0, step_seconds=9.0, wait_seconds=float("nan")),
        event("checkpoint", 2.4, round=1, path="checkpoints/round-000001"),
        event("rollback", 2.5, from_round=2, to_round=1, reason="all died"),
        event("run_resumed", 2.6, round=1, path="a", skipped=["b"]),
        event("run_finished", 2.7, accuracy=0.5, rounds=1),
        event("run_stopped", 2.8, reason="Ctrl-C"),
        event("run_failed", 2.9, error="boom"),
    )
    parsed = [re.fullmatch(r"(\d+\.\d+)(?:, i = (\d+))?: (.+)", line) for line in lines]
    assert all(parsed)
    times = [float(match[1]) for match in parsed if match]
    assert times == sorted(times)
    assert len(lines) == 21
    assert "2.0, i = 1: worker 0 on h lost: killed by a signal" in lines
    assert "2.6: skipped damaged checkpoint b" in lines


def test_unknown_kinds_and_missing_fields_are_no_fault(tmp_path):
    lines = log_of(tmp_path, event("colour_changed", 1.0), {}, event("worker_lost", 3.0))
    assert lines == ["3.0, i = 0: worker - on - lost: -"]


def test_lines_are_on_disk_before_the_log_is_closed(tmp_path):
    log = TrainingLog(tmp_path, 1)
    log.on_event(event("note", 0.5, message="loading data"))
    assert log.path.read_text(encoding="utf-8") == "0.5: loading data\n"
    log.close()
    log.close()


def test_an_unwritable_directory_says_what_to_do(tmp_path):
    with pytest.raises(RunDirError, match="cannot be written: No such file or directory; give a run directory"):
        TrainingLog(tmp_path / "missing", 1)


def test_a_full_disk_says_what_to_do(tmp_path):
    (tmp_path / "training_log_1.txt").symlink_to("/dev/full")
    with TrainingLog(tmp_path, 1) as log, pytest.raises(RunDirError, match="No space left on device; make room"):
        log.on_event(event("note", 0.5, message="loading data"))
