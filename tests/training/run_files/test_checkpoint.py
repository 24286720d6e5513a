"""Checkpoints: whole or not there, the newest n kept, damaged ones passed over."""

import json

import pytest

from sparknet.data.loading.sampling_order import Cursor
from sparknet.errors import CheckpointError
from sparknet.training.coordination.rules import RunProgress
from sparknet.training.run_files.checkpoint import INNER, OUTER, WEIGHTS, Checkpoints

CONTENT = {WEIGHTS: b"w" * 5000, INNER: b"inner", OUTER: b"outer" * 10}


def save(checkpoints, round, content=CONTENT):
    cursors = {0: Cursor(epoch=1, position=round), 3: Cursor(epoch=0, position=2)}
    progress = RunProgress(round=round, iteration=7 * round, samples=10 * round, cursors=cursors)
    with checkpoints.writing(progress) as draft:
        for name, data in content.items():
            draft.write(name, data[:3])
            draft.write(name, memoryview(data)[3:])
    return progress


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path, keep=3)


def test_what_was_written_is_found(checkpoints):
    progress = save(checkpoints, 50)
    assert checkpoints.path(50).name == "round-000050"
    assert {path.name for path in checkpoints.path(50).iterdir()} == {*CONTENT, "checkpoint.json"}
    for name, data in CONTENT.items():
        assert (checkpoints.path(50) / name).read_bytes() == data
    saved, skipped = checkpoints.newest_good()
    assert skipped == []
    assert saved.progress == progress
    assert {name: file.bytes for name, file in saved.files.items()} == {n: len(d) for n, d in CONTENT.items()}


def test_an_empty_run_directory_has_none(checkpoints):
    assert checkpoints.rounds() == []
    assert checkpoints.newest_good() == (None, [])


def test_the_newest_n_are_kept(checkpoints):
    for round in (1, 2, 10, 20, 100):
        save(checkpoints, round)
    assert checkpoints.rounds() == [10, 20, 100]


def test_what_is_not_released_is_kept_too(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, until_released=True)
    for round in (1, 2, 3, 4):
        save(checkpoints, round)
    assert checkpoints.rounds() == [1, 2, 3, 4]
    checkpoints.release(2)
    assert checkpoints.rounds() == [1, 3, 4]
    checkpoints.release(4)
    checkpoints.release(3)
    assert checkpoints.rounds() == [1, 3, 4]
    checkpoints.release(1)
    assert checkpoints.rounds() == [3, 4]


def test_what_is_written_twice_is_released_twice(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, until_released=True)
    save(checkpoints, 1)
    save(checkpoints, 1)
    save(checkpoints, 2)
    checkpoints.release(1)
    assert checkpoints.rounds() == [1, 2]
    checkpoints.release(1)
    assert checkpoints.rounds() == [2]


def test_the_same_round_once_more_replaces_the_older(checkpoints):
    save(checkpoints, 4, {WEIGHTS: b"old", OUTER: b"old"})
    save(checkpoints, 4, {WEIGHTS: b"new"})
    assert (checkpoints.path(4) / WEIGHTS).read_bytes() == b"new"
    assert checkpoints.load(4).files.keys() == {WEIGHTS}


def only(checkpoints):
    return sorted(path.name for path in checkpoints.directory.iterdir())


def break_off(checkpoints, error):
    with checkpoints.writing(RunProgress(round=2)) as draft:
        draft.write(WEIGHTS, b"half")
        raise error


def test_an_error_in_the_middle_leaves_nothing(checkpoints):
    save(checkpoints, 1)
    with pytest.raises(RuntimeError, match="the worker went away"):
        break_off(checkpoints, RuntimeError("the worker went away"))
    assert only(checkpoints) == ["round-000001"]


def test_a_disk_error_in_the_middle_leaves_nothing_and_names_the_remedy(checkpoints):
    save(checkpoints, 1)
    with pytest.raises(CheckpointError, match=r"round 2 cannot be written to .*full.*`sparknet resume`"):
        break_off(checkpoints, OSError(28, "the disk is full"))
    assert only(checkpoints) == ["round-000001"]


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file stands in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(Checkpoints(tmp_path, keep=2), 1)


def test_nothing_is_visible_before_the_end(checkpoints):
    with checkpoints.writing(RunProgress(round=2)) as draft:
        draft.write(WEIGHTS, b"x")
        assert checkpoints.rounds() == []
        assert checkpoints.newest_good() == (None, [])
    assert checkpoints.rounds() == [2]


def test_other_files_are_refused(checkpoints):
    with (
        pytest.raises(CheckpointError, match=r"'evil\.sh' is no file of a checkpoint"),
        checkpoints.writing(RunProgress(round=1)) as draft,
    ):
        draft.write("evil.sh", b"x")
    assert only(checkpoints) == []


def cut_short(path):
    file = path / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_byte(path):
    file = path / INNER
    data = bytearray(file.read_bytes())
    data[2] ^= 1
    file.write_bytes(data)


DAMAGES = {
    "cut short": cut_short,
    "flipped byte": flip_a_byte,
    "missing file": lambda path: (path / OUTER).unlink(),
    "missing index": lambda path: (path / "checkpoint.json").unlink(),
    "empty index": lambda path: (path / "checkpoint.json").write_text(""),
    "garbage index": lambda path: (path / "checkpoint.json").write_text('{"round": "ten"}'),
    "binary index": lambda path: (path / "checkpoint.json").write_bytes(b"\xff\x00\xfe"),
    "a list as index": lambda path: (path / "checkpoint.json").write_text("[1]"),
    "no files in the index": lambda path: edit_index(path, files={}),
    "another round in the index": lambda path: edit_index(path, round=3),
    "a file outside": lambda path: edit_index(path, files={"../../config.toml": {"bytes": 1, "sha256": "0"}}),
}


def edit_index(path, **changes):
    index = path / "checkpoint.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_passed_over_and_named(checkpoints, damage):
    for round in (10, 20):
        save(checkpoints, round)
    damage(checkpoints.path(20))
    saved, skipped = checkpoints.newest_good()
    assert saved.round == 10
    assert skipped == [checkpoints.path(20)]
    with pytest.raises(CheckpointError, match="round-000020"):
        checkpoints.load(20)


def test_when_all_are_damaged_there_is_none(checkpoints):
    for round in (10, 20):
        save(checkpoints, round)
        cut_short(checkpoints.path(round))
    assert checkpoints.newest_good() == (None, [checkpoints.path(20), checkpoints.path(10)])


def test_damaged_later_ones_do_not_displace_good_ones(checkpoints):
    """A run that fell back behind damaged checkpoints still keeps what it writes now."""
    for round in (10, 20, 30):
        save(checkpoints, round)
        cut_short(checkpoints.path(round))
    for round in (1, 2, 3, 4):
        save(checkpoints, round)
        assert checkpoints.newest_good()[0].round == round
    assert checkpoints.rounds() == [2, 3, 4, 10, 20, 30]


def test_other_things_in_the_directory_are_left_alone(checkpoints):
    save(checkpoints, 1)
    (checkpoints.directory / "round-notes").mkdir()
    (checkpoints.directory / "README").write_text("mine")
    for round in (2, 3, 4):
        save(checkpoints, round)
    assert only(checkpoints) == ["README", "round-000002", "round-000003", "round-000004", "round-notes"]
