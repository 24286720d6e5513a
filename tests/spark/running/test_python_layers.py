"""A net whose images and loss are code of the user's, through Spark: trained, resumed, tested, and failing."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pyspark.sql import SparkSession

from digits import Story, open_test_session, read_events
from segmentation import write_segmentation
from sparknet.caffe import CaffeNet
from sparknet.caffe.solver.caffe_solver import CaffeSolver
from sparknet.cli.main import main
from sparknet.spark.running.run import train
from sparknet.training.caffe_runs.run_config import CaffeFiles, solver_run
from sparknet.training.run_files.run_dir import RunDir

pytestmark = pytest.mark.spark

TWO = ["--workers", "2", "--set", "sync.local_steps=1", "--set", "cluster.heartbeat_timeout_seconds=20.0"]
ALLOWED = "--allow-python-layers"


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    session = open_test_session("local[2,8]")
    yield session
    session.stop()


@pytest.fixture(scope="module")
def place(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current directory of the module's commands, with a finished run in `run`."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        write_segmentation(place, "segment_layers_here")
        assert main(["train", "--solver", "solver.prototxt", "--run-dir", "run", ALLOWED, *TWO]) == 0
    return place


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def loss_in(printed: str) -> float:
    return float(re.findall(r"^loss\s+(?:= )?(\S+)", printed, flags=re.MULTILINE)[0])


def test_two_workers_at_every_step_are_one_process(place: Path) -> None:
    """Each replica takes every other image; the one process takes two for a step, which is the mean of both."""
    text = (place / "solver.prototxt").read_text() + "iter_size: 2\n"
    (place / "alone.prototxt").write_text(text)
    solver = CaffeSolver.from_prototxt(place / "alone.prototxt", allow_python_layers=True)
    losses = solver.step({} for _ in range(2 * 12))
    events = read_events(place / "run")
    rounds = [event for event in events if event["event"] == "round"]
    assert [event["loss"] for event in rounds] == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0] - 0.3
    trained = CaffeNet(solver.net.description)
    trained.load_weights(place / "snapshots" / "segments_iter_12.caffemodel")
    for layer, blobs in solver.net.weights().items():
        torch.testing.assert_close(trained.weights()[layer], blobs, rtol=1e-5, atol=1e-6)


def test_a_finished_model_is_tested_only_where_its_code_may_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", "run"]) == 1
    assert "PixelLoss of module segment_layers_here" in capsys.readouterr().err
    assert main(["test", "run", ALLOWED]) == 0
    by_two = loss_in(capsys.readouterr().out)
    files = ["--model", "net.prototxt", "--weights", "snapshots/segments_iter_12.caffemodel"]
    assert main(["test", *files, ALLOWED, "--workers", "1", "--iterations", "6"]) == 0
    printed = capsys.readouterr().out
    assert "tested 6 rows" in printed
    # Two tasks take every other image, one all of them: images 0 to 5.
    assert loss_in(printed) == pytest.approx(by_two, abs=1e-4)


def test_an_interrupted_run_goes_on_only_where_its_code_may_run(
    spark: SparkSession, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["run.workers=2", "sync.local_steps=1", "run.checkpoint_every=2", "net.allow_python_layers=true"]
    start = solver_run(CaffeFiles(solver=place / "solver.prototxt"), None, overrides)
    story = Story()

    def interrupt() -> None:
        raise KeyboardInterrupt

    story.at_round("interrupt", 4, interrupt)
    with RunDir.create(tmp_path / "run", start.config) as opened, pytest.raises(KeyboardInterrupt):
        train(start, opened, spark=spark, observers=[story.observe])
    assert main(["resume", str(tmp_path / "run")]) == 1
    assert "--allow-python-layers" in capsys.readouterr().err
    assert main(["resume", str(tmp_path / "run"), ALLOWED]) == 0
    rounds = [event["round"] for event in read_events(tmp_path / "run") if event["event"] == "round"]
    assert rounds[-1] == 12


def test_a_layer_that_fails_at_a_worker_is_told_with_its_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = write_segmentation(tmp_path / "faulty", "segment_layers_faulty", fails_at=5)
    code = (tmp_path / "faulty" / "segment_layers_faulty.py").read_text()
    line = code[: code.index("is spoilt")].count("\n") + 1
    monkeypatch.chdir(tmp_path / "faulty")
    command = ["train", "--solver", solver.name, "--run-dir", str(tmp_path / "run"), ALLOWED, *TWO]
    assert main(command) == 1
    told = capsys.readouterr().err
    # Images 1, 3 and 5 are those of the second worker.
    assert "worker 1 on" in told
    assert "layer 'images' (Python): GrowingImages.forward: " in told
    assert f"{tmp_path}/faulty/segment_layers_faulty.py:{line}: Exception: image 5 is spoilt" in told
