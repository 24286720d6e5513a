"""What `sparknet resume` refuses before anything starts."""

import pytest

from caffe_example import write_example
from sparknet.cli.main import main
from sparknet.training.caffe_runs.run_config import CaffeFiles, solver_run
from sparknet.training.run_files.run_dir import RunDir


def test_a_caffe_run_keeps_the_length_of_its_rounds(tmp_path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    example = write_example(tmp_path / "example")
    config = solver_run(CaffeFiles(solver=example.solver), example.data, []).config
    with RunDir.create(tmp_path / "run", config):
        pass
    assert main(["resume", str(tmp_path / "run"), "--set", "sync.local_steps=7"]) == 2
    assert "sync.local_steps is 7 and the run has 10; with a Caffe solver it must stay" in capsys.readouterr().err
    with RunDir.reopen(tmp_path / "run") as run_dir:
        assert run_dir.load_config().sync.local_steps == 10
