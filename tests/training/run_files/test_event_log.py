"""The event log: one JSON object a line, there as soon as it is written."""

import json
from pathlib import Path

import pytest

from sparknet.errors import RunDirError
from sparknet.training.run_files.event_log import EventLog


def records(run_dir):
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_record_is_a_line_that_is_there_at_once(tmp_path):
    with EventLog(tmp_path, began=0.0) as log:
        returned = log.write("round", round=1, loss=0.5)
        assert records(tmp_path) == [returned]
        log.write("note", message="τ\nzwei Zeilen")
        assert len(records(tmp_path)) == 2
    first, second = records(tmp_path)
    assert (first["event"], first["round"], first["loss"]) == ("round", 1, 0.5)
    assert second["message"] == "τ\nzwei Zeilen"
    assert first["elapsed_seconds"] == pytest.approx(first["time"], abs=0.01)
    assert list(first)[:3] == ["time", "elapsed_seconds", "event"]


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path):
    for start in (1, 2):
        with EventLog(tmp_path, began=0.0) as log:
            log.write("run_started", start=start)
    assert [record["start"] for record in records(tmp_path)] == [1, 2]


def test_a_last_line_that_was_cut_off_does_not_swallow_the_next(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"event": "round"}\n{"event": "rou')
    with EventLog(tmp_path, began=0.0) as log:
        log.write("run_resumed", round=1)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "run_resumed"


def test_a_run_directory_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(RunDirError, match=r"events\.jsonl cannot be written.*choose another --run-dir"):
        EventLog(tmp_path / "gone", began=0.0)


@pytest.mark.skipif(
    not Path("/dev/full").is_char_device(), reason="/dev/full is not the device that is always full"
)
def test_a_full_disk_is_an_error_with_the_remedy(tmp_path):
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    with (
        EventLog(tmp_path, began=0.0) as log,
        pytest.raises(RunDirError, match=r"No space left on device.*free space there, then resume"),
    ):
        log.write("round", round=1)
