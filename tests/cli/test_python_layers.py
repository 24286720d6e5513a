"""Nets with Python layers on the command line: what runs only with leave, and what is refused without Spark."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from segmentation import write_segmentation
from sparknet.caffe import CaffeNet, NetSpec
from sparknet.cli.main import main

ALLOWED = "--allow-python-layers"
MODULE = "segment_layers_cli"
CODE = f"layer 'images' (Python): GrowingImages of module {MODULE}"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place") / "files"
    write_segmentation(place, MODULE)
    net = CaffeNet(NetSpec.from_prototxt(place / "net.prototxt").allowing_python_layers(place))
    net.save_weights(place / "w.caffemodel")
    return place


@pytest.fixture
def run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Runs a command in another directory than that of the files."""
    monkeypatch.chdir(tmp_path)
    # Which the commands change.
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    before = signal.getsignal(signal.SIGTERM)

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert not list(tmp_path.glob("run*"))
        return code, out, err

    yield command
    signal.signal(signal.SIGTERM, before)


def test_without_leave_nothing_of_it_runs(run: Run, place: Path, tmp_path: Path) -> None:
    weights = ("--weights", place / "w.caffemodel")
    for command in (
        ("train", "--solver", place / "solver.prototxt", "--run-dir", tmp_path / "run"),
        ("test", "--model", place / "net.prototxt", *weights, "--iterations", 2),
        ("caffe", "summary", place / "net.prototxt"),
        ("caffe", "export", place / "net.prototxt", *weights, "--to", tmp_path / "a.safetensors"),
    ):
        code, out, err = run(*command)
        assert (code, out) == (1, "")
        assert f"{place}/net.prototxt:3: {CODE}" in err
        assert "--allow-python-layers on the command line" in err


def test_with_leave_a_net_is_summed_up_and_exported(run: Run, place: Path, tmp_path: Path) -> None:
    code, out, _ = run("caffe", "summary", place / "net.prototxt", ALLOWED)
    assert code == 0
    assert "images    Python         data 1x3x8x8" in out
    files = (place / "net.prototxt", ALLOWED, "--weights", place / "w.caffemodel")
    assert run("caffe", "export", *files, "--to", tmp_path / "a.safetensors")[0] == 0
    code, _, err = run("caffe", "export", *files, "--to", tmp_path / "a.onnx")
    assert code == 1
    assert "layer 'images' (Python)" in err
    assert "code cannot be written as ONNX" in err
    assert not (tmp_path / "a.onnx").exists()


def test_a_module_that_is_not_there_costs_no_start_of_spark(run: Run, place: Path, tmp_path: Path) -> None:
    net = tmp_path / "net.prototxt"
    net.write_text((place / "net.prototxt").read_text().replace(MODULE, "segment_layers_nowhere"))
    code, out, err = run("train", "--solver", place / "solver.prototxt", "--net", net, ALLOWED)
    assert (code, out) == (1, "")
    assert "its module 'segment_layers_nowhere' is not in PYTHONPATH" in err
    assert str(tmp_path) in err


@pytest.mark.parametrize(
    ("changed", "options", "code", "told"),
    [
        (("test_iter: 6", ""), (), 2, "run.eval_batches is not given and the net makes its own rows"),
        ((), ("--set", "run.epochs=2"), 2, "run.rounds is not given and the net makes its own rows"),
        ((), ("--set", "net.compile=true"), 2, "Python layers, which are not compiled"),
        ((), ("--data", "digits"), 1, "takes no rows, since its own layers make them"),
    ],
)
def test_what_does_not_go_with_rows_of_its_own(
    run: Run, place: Path, tmp_path: Path, changed: tuple[str, str], options: tuple[str, ...], code: int, told: str
) -> None:
    text = (place / "solver.prototxt").read_text()
    solver = tmp_path / "solver.prototxt"
    solver.write_text(text.replace(*changed) if changed else text)
    files = ("--solver", solver, "--net", place / "net.prototxt")
    found, out, err = run("train", *files, "--run-dir", tmp_path / "run", ALLOWED, *options)
    assert (found, out) == (code, "")
    assert told in err


def test_a_test_must_say_how_many(run: Run, place: Path) -> None:
    files = ("--model", place / "net.prototxt", "--weights", place / "w.caffemodel")
    code, _, err = run("test", *files, ALLOWED)
    assert code == 2
    assert "--iterations" in err


PLAIN = """
layer { name: "in" type: "MemoryData" top: "data" top: "label"
  memory_data_param { batch_size: 2 channels: 1 height: 2 width: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


def test_a_net_that_takes_rows_makes_none(run: Run, place: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.prototxt").write_text(PLAIN)
    solver = place / "solver.prototxt"
    code, _, err = run("train", "--solver", solver, "--net", "plain.prototxt", "--data", "net", ALLOWED)
    assert code == 1
    assert "phase TRAIN takes data, label and has no Python layer without bottoms" in err
    (tmp_path / "named.toml").write_text('data.source = "net"\nnet.name = "lenet"\nrun.rounds = 1\n')
    code, _, err = run("train", "named.toml")
    assert code == 2
    assert "only the Python layers of a Caffe net make their own rows" in err


def test_there_are_no_rows_to_convert(run: Run) -> None:
    code, _, err = run("data", "to-lmdb", "net", "--to", "somewhere")
    assert code == 2
    assert "rows that a net makes are there for it alone" in err
