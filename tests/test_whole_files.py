"""Files and directories appear whole or not at all, whatever goes wrong."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sparknet.whole_files import tidy, whole_directory, whole_file


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def fill(path, text):
    """A directory with one file in it."""
    path.mkdir()
    (path / "file").write_text(text, encoding="utf-8")
    return path


class Renames:
    """Lets the renames of one process fail by number, as a full or broken disk would; they are counted from 1."""

    def __init__(self, monkeypatch, broken, error):
        self.count, self._broken, self._error, self._rename = 0, broken, error, Path.rename
        monkeypatch.setattr(Path, "rename", lambda path, target: self(path, target))

    def __call__(self, path, target):
        self.count += 1
        if self.count == self._broken:
            raise self._error
        return self._rename(path, target)


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "file"
    with whole_file(path) as draft:
        assert draft.parent == tmp_path
        assert draft.name.startswith(".")
        draft.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write():
        with whole_file(path) as draft:
            draft.write_bytes(b"ne")
            raise KeyError("x")

    with pytest.raises(KeyError):
        write()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_disk_that_is_full_at_the_end_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), whole_file(path) as draft:
        draft.write_bytes(b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_is_honoured(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "file") as draft:
            draft.write_bytes(b"")
        with whole_directory(tmp_path / "directory"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "directory").stat().st_mode) == 0o777 & ~umask


def written_by_a_library(path):
    """As safetensors writes: a temporary file that is renamed, which only its owner may read."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    Path(name).rename(path)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_what_a_library_puts_in_place_has_the_rights_of_all_files(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "file") as draft:
            written_by_a_library(draft)
        with whole_directory(tmp_path / "directory") as draft:
            (draft / "part").mkdir()
            written_by_a_library(draft / "file")
            written_by_a_library(draft / "part" / "file")
    finally:
        os.umask(before)
    found = {path.relative_to(tmp_path).as_posix(): rights(path) for path in tmp_path.rglob("*")}
    files = dict.fromkeys(["file", "directory/file", "directory/part/file"], mode)
    assert found == files | dict.fromkeys(["directory", "directory/part"], 0o777 & ~umask)


def rights(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_is_no_file(tmp_path):
    (tmp_path / "there").mkdir()
    for path in (tmp_path / "there", tmp_path / "..", Path("/"), ""):
        with pytest.raises(IsADirectoryError), whole_file(path):
            pytest.fail("the block must not be entered")
    assert names(tmp_path) == ["there"]


def test_a_folder_that_is_missing_is_said_before_anything_is_written(tmp_path):
    for writing in (whole_file, whole_directory):
        with pytest.raises(FileNotFoundError), writing(tmp_path / "missing" / "it"):
            pytest.fail("the block must not be entered")


def test_a_directory_replaces_the_one_before(tmp_path):
    path = fill(tmp_path / "model", "old")
    with whole_directory(path) as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "other").write_text("new", encoding="utf-8")
        assert names(path) == ["file"]
    assert names(path) == ["inner"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("broken", [1, 2])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_where_it_cannot_be_renamed_the_old_directory_is_back(tmp_path, monkeypatch, broken, error):
    path = fill(tmp_path / "model", "old")
    renames = Renames(monkeypatch, broken, error)
    with pytest.raises(type(error)), whole_directory(path) as draft:
        (draft / "file").write_text("new", encoding="utf-8")
    assert renames.count >= broken, "the failure was injected"
    assert (path / "file").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["model"]


def test_a_directory_that_may_not_be_replaced_stays(tmp_path):
    path = fill(tmp_path / "database", "old")
    with pytest.raises(OSError, match="not empty"), whole_directory(path, replace=False) as draft:
        (draft / "file").write_text("new", encoding="utf-8")
    assert (path / "file").read_text(encoding="utf-8") == "old"
    (path / "file").unlink()
    with whole_directory(path, replace=False) as draft:
        (draft / "file").write_text("new", encoding="utf-8")
    assert (path / "file").read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["database"]


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "model").write_bytes(b"old")
    with pytest.raises(NotADirectoryError), whole_directory(tmp_path / "model"):
        pass
    assert (tmp_path / "model").read_bytes() == b"old"
    assert names(tmp_path) == ["model"]


KILLED = """
import os, sys
from pathlib import Path
from sparknet.whole_files import whole_directory, whole_file
path, at = Path(sys.argv[1]), int(sys.argv[2])
rename, renames = Path.rename, []
def killed(source, target):
    renames.append(target)
    if len(renames) == at:
        os._exit(9)
    return rename(source, target)
Path.rename = killed
with whole_file(path.with_name("other")) as beside, whole_directory(path) as draft:
    (draft / "file").write_text("new", encoding="utf-8")
"""


@pytest.mark.parametrize("at", [1, 2, 3])
def test_what_a_killed_process_leaves_is_put_right(tmp_path, at):
    path = fill(tmp_path / "model", "old")
    (tmp_path / ".hidden.part").write_bytes(b"somebody else's")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path), str(at)], check=False)
    assert ended.returncode == 9
    assert len(names(tmp_path)) > 2, "it has left something"
    tidy(tmp_path)
    assert names(tmp_path) == [".hidden.part", "model"]
    assert (path / "file").read_text(encoding="utf-8") == ("new" if at == 3 else "old")


def test_there_is_nothing_to_put_right_in_a_directory_that_is_not_there(tmp_path):
    tidy(tmp_path / "missing")
    assert names(tmp_path) == []
