"""The run directory: made once, used by one process at a time, and never left half-written."""

import subprocess
import sys

import pytest
from filelock import FileLock

from sparknet.config import Data, Net, Run, RunConfig
from sparknet.errors import RunDirError
from sparknet.training.run_files.run_dir import RunDir

CONFIG = RunConfig(data=Data(source="digits", validation_fraction=0.2), net=Net(name="lenet"), run=Run(rounds=7))


def test_a_new_run_finds_its_configuration_again(tmp_path):
    path = tmp_path / "runs" / "first"
    with RunDir.create(path, CONFIG) as run_dir:
        assert run_dir.path == path
    with RunDir.reopen(path) as run_dir:
        assert run_dir.load_config() == CONFIG


def test_a_directory_with_a_run_is_not_overwritten(tmp_path):
    RunDir.create(tmp_path / "run", CONFIG).close()
    with pytest.raises(RunDirError, match=r"holds a run already; go on with `sparknet resume .*run`"):
        RunDir.create(tmp_path / "run", CONFIG)


def test_a_directory_without_a_run_cannot_be_resumed(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunDirError, match=r"holds no run \(there is no config\.toml in it\)"):
            RunDir.reopen(path)


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "run"
    with RunDir.create(path, CONFIG):
        with pytest.raises(RunDirError, match="is in use by another run"):
            RunDir.reopen(path)
        program = "import sys; from pathlib import Path; from sparknet.training.run_files.run_dir import RunDir\n"
        program += "RunDir.reopen(Path(sys.argv[1]))"
        other = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
        assert other.returncode != 0
        assert "is in use by another run" in other.stderr
    RunDir.reopen(path).close()


def test_a_process_that_was_killed_lets_the_directory_go(tmp_path):
    RunDir.create(tmp_path / "run", CONFIG).close()
    program = "import os, sys; from pathlib import Path; from sparknet.training.run_files.run_dir import RunDir\n"
    program += "kept = RunDir.reopen(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], check=False)
    assert killed.returncode == -9
    RunDir.reopen(tmp_path / "run").close()


KILLED = """
import os, sys
from pathlib import Path
from sparknet.training.coordination.rules import RunProgress
from sparknet.training.run_files.checkpoint import WEIGHTS, Checkpoints
from sparknet.training.run_files.run_dir import RunDir
from sparknet.whole_files import whole_directory
run_dir = RunDir.reopen(Path(sys.argv[1]))
with Checkpoints(run_dir.path, 2).writing(RunProgress(round=1)) as draft, whole_directory(run_dir.path / "model"):
    draft.write(WEIGHTS, b"half")
    (run_dir.path / "model").rename(run_dir.path / ".model.0123456789abcdef.old")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_driver_left_is_put_right(tmp_path):
    path = tmp_path / "run"
    RunDir.create(path, CONFIG).close()
    (path / "model").mkdir()
    (path / "model" / "model.json").write_text("old")
    (path / "store" / ".preparing-x").mkdir(parents=True)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -9
    assert len(list((path / "checkpoints").iterdir())) == 1
    assert not (path / "model").exists()
    RunDir.reopen(path).close()
    assert list((path / "checkpoints").iterdir()) == []
    assert list((path / "store").iterdir()) == []
    assert sorted(found.name for found in path.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.toml",
        "model",
        "store",
    ]
    assert (path / "model" / "model.json").read_text() == "old"


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunDirError, match=r"cannot be (made|written).*choose another --run-dir"):
            RunDir.create(path, CONFIG)


def test_the_result_is_none_until_the_run_is_finished(tmp_path):
    with RunDir.create(tmp_path / "run", CONFIG) as run_dir:
        assert run_dir.load_result() is None
        run_dir.save_result({"accuracy": 0.5})
        run_dir.save_result({"accuracy": 0.75, "rounds": 7})
        assert run_dir.load_result() == {"accuracy": 0.75, "rounds": 7}
        names = {path.name for path in run_dir.path.iterdir()}
        assert names == {"config.toml", "result.json", ".lock"}
        assert (run_dir.path / "result.json").stat().st_mode & 0o044, "others cannot read the result"


def test_a_result_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    with RunDir.create(tmp_path / "run", CONFIG) as run_dir:
        (run_dir.path / "result.json").mkdir()
        (run_dir.path / "result.json" / "in the way").write_text("")
        with pytest.raises(RunDirError, match=r"result\.json cannot be written"):
            run_dir.save_result({"accuracy": 0.5})
        assert {path.name for path in run_dir.path.iterdir()} == {"config.toml", "result.json", ".lock"}


def test_a_damaged_result_is_an_error_that_names_the_file(tmp_path):
    with RunDir.create(tmp_path / "run", CONFIG) as run_dir:
        (run_dir.path / "result.json").write_text('{"accuracy": 0.')
        with pytest.raises(RunDirError, match=r"result\.json is damaged"):
            run_dir.load_result()


def test_the_store_lies_in_the_run_directory_unless_it_is_given(tmp_path):
    with RunDir.create(tmp_path / "run", CONFIG) as run_dir:
        assert run_dir.store(CONFIG) == str(tmp_path / "run" / "store")
        data = Data(source="digits", validation_fraction=0.2, store=str(tmp_path / "shared"))
        assert run_dir.store(RunConfig(data=data, net=CONFIG.net, run=CONFIG.run)) == str(tmp_path / "shared")


def test_a_run_that_another_process_made_and_ended_meanwhile(tmp_path, monkeypatch):
    path, acquire = tmp_path / "run", FileLock.acquire

    def late(lock, *arguments, **options):
        (path / "config.toml").write_text("theirs")
        return acquire(lock, *arguments, **options)

    monkeypatch.setattr(FileLock, "acquire", late)
    with pytest.raises(RunDirError, match="holds a run already"):
        RunDir.create(path, CONFIG)
    assert (path / "config.toml").read_text() == "theirs"
