"""What `sparknet train` settles before anything starts."""

import re
import time
from pathlib import Path

import pytest

from caffe_example import write_example
from places import REPOSITORY
from sparknet.cli import train as command
from sparknet.cli.main import _SOURCE_HELP, main
from sparknet.data.sources.registry import FORMATS
from sparknet.training.run_files.run_dir import RunDir


def test_a_solver_given_as_configuration(tmp_path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    example = write_example(tmp_path / "example")
    assert main(["train", str(example.solver)]) == 2
    told = capsys.readouterr().err
    assert f"{example.solver} is a prototxt; CONFIG is a TOML file: give a solver as --solver" in told
    assert not (tmp_path / "runs").exists()


def test_runs_that_begin_within_a_second_have_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20261122-152843")
    began = []

    def train_in(run_dir: RunDir, config: object, sources: object) -> int:
        began.append(run_dir.path.relative_to(tmp_path))
        return 0

    monkeypatch.setattr(command, "train_in", train_in)
    digits = str(REPOSITORY / "configs" / "digits.toml")
    assert [main(["train", digits]) for _ in range(3)] == [0, 0, 0]
    first = Path("runs/digits-20261122-152843")
    assert began == [first, Path(f"{first}-2"), Path(f"{first}-3")]


def test_help_names_every_format():
    """The command line parses before it imports anything heavy, so the registry's names stand there once more."""
    named = set(re.findall(r"[a-z0-9_]+", _SOURCE_HELP))
    # A net that makes its own rows is asked without any.
    told = {name: form for name, form in FORMATS.items() if name != "net"}
    assert set(told) <= named
    assert {name for name, form in told.items() if not form.has_path} == {_SOURCE_HELP.rsplit(" ", 1)[1]}
