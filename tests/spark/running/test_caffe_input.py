"""What a Caffe user can get wrong: found before Spark starts, told in one line with what to do."""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from caffe_example import Example, write_example
from sparknet.caffe import CaffeNet
from sparknet.caffe.schema import NetParameter
from sparknet.caffe.solver.solverstate import SavedState, write_state
from sparknet.caffe.weights.mean_image import write_mean
from sparknet.cli import test as test_command
from sparknet.cli.main import main
from sparknet.errors import ClusterError
from sparknet.spark.jobs import session
from sparknet.spark.measure import Measurement


@pytest.fixture
def example(tmp_path: Path) -> Example:
    return write_example(tmp_path / "example")


class Commands:
    """Runs commands that must fail without Spark and without leaving a run directory behind."""

    def __init__(self, example: Example, capsys: pytest.CaptureFixture[str]) -> None:
        self.example = example
        self.run_dir = example.directory.parent / "run"
        self._capsys = capsys

    def refused(self, code: int, message: str, *arguments: object) -> None:
        got = main([str(argument) for argument in arguments])
        told = self._capsys.readouterr()
        lines = told.err.splitlines()
        assert (got, len(lines)) == (code, 1), told
        assert lines[0].startswith("sparknet: error: ")
        assert re.search(message, lines[0]), lines[0]
        assert not self.run_dir.exists()

    def train_refused(self, code: int, message: str, *arguments: object, **given: object) -> None:
        options = {"--solver": self.example.solver, "--data": self.example.data, "--run-dir": self.run_dir, **given}
        words = [word for name, value in options.items() if value is not None for word in (name, value)]
        self.refused(code, message, "train", *words, *arguments)

    def test_refused(self, code: int, message: str, *arguments: object, **given: object) -> None:
        weights = self.example.directory / "none.caffemodel"
        options = {"--model": self.example.net, "--weights": weights, "--data": self.example.data, **given}
        words = [word for name, value in options.items() if value is not None for word in (name, value)]
        self.refused(code, message, "test", *words, *arguments)


@pytest.fixture
def commands(
    example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Commands:
    def no_spark(*_: object, **__: object) -> None:
        raise AssertionError("Spark was started")

    monkeypatch.setattr(session, "open_session", no_spark)
    monkeypatch.chdir(tmp_path)
    return Commands(example, capsys)


def test_usage(commands: Commands, example: Example) -> None:
    refused, solver = commands.refused, example.solver
    refused(2, "--solver is missing; sparknet train takes CONFIG, or --solver", "train")
    refused(2, "--data is not given, and layer 'cifar' .* is not here: give --data", "train", "--solver", solver)
    refused(2, "a.toml and --solver are given; .*leave one of them out", "train", "a.toml", "--solver", solver)
    commands.train_refused(
        2,
        "--weights a and --snapshot b are given; a snapshot brings its own",
        **{"--weights": "a", "--snapshot": "b"},
    )
    refused(2, "--model, --weights missing; sparknet test takes RUN_DIR", "test")
    refused(2, "--weights missing", "test", "--model", example.net)
    refused(2, "run and --iterations are given", "test", "run", "--iterations", 3)


def test_sources(commands: Commands, tmp_path: Path) -> None:
    refused = commands.train_refused
    refused(2, r"'cifar' is no kind of data: did you mean cifar10\?", **{"--data": "cifar:x"})
    refused(2, "'leveldb' is no kind of data: .*There are digits, cifar10:PATH", **{"--data": "leveldb:/x"})
    refused(1, "the directory has no CIFAR-10 train batches", **{"--data": f"cifar10:{tmp_path}"})
    refused(2, "say which rows are held out", **{"--data": "parquet:/x"})
    commands.test_refused(1, "/x: no such file or directory", **{"--data": "parquet:/x"})


def test_files_that_are_not_there(commands: Commands, example: Example) -> None:
    refused = commands.train_refused
    refused(1, r"none\.prototxt: no such file", **{"--solver": "none.prototxt"})
    refused(1, r"none\.prototxt: no such file", **{"--net": "none.prototxt"})
    refused(1, r"none\.caffemodel cannot be read", **{"--weights": "none.caffemodel"})
    refused(1, r"none\.solverstate: the solver state cannot be read", **{"--snapshot": "none.solverstate"})
    commands.test_refused(1, r"none\.caffemodel cannot be read")
    commands.test_refused(1, r"none\.prototxt: no such file", **{"--model": "none.prototxt"})
    (example.directory / "mean.binaryproto").unlink()
    refused(
        2, r"layer 'cifar' \(Data\): mean_file: .*cannot be read.*--set data\.mean=image takes the training rows'"
    )
    commands.test_refused(2, r"mean_file: .*cannot be read.*or --set data\.mean=none takes none off")
    commands.test_refused(1, r"none\.caffemodel cannot be read", "--set", "data.mean=none")


def test_weights_that_lack_a_layer_are_not_tested(commands: Commands, example: Example, tmp_path: Path) -> None:
    """A file that was cut between two layers is a whole one of fewer layers."""
    shapes = {"data": (10, 3, 32, 32), "label": (10,)}
    net = CaffeNet.from_prototxt(example.net, "TEST", input_shapes=shapes)
    path = tmp_path / "cut.caffemodel"
    net.save_weights(path)
    written = NetParameter.FromString(path.read_bytes())
    del written.layer[[layer.name for layer in written.layer].index("ip1") :]
    path.write_bytes(path.read_bytes()[: written.ByteSize()])
    commands.test_refused(
        1,
        r"cut\.caffemodel has no weights for layers ip1, ip2 of .*quick_train_test\.prototxt",
        **{"--weights": path},
    )


def test_a_net_that_does_not_fit(commands: Commands, example: Example) -> None:
    net = example.net.read_text()

    def refused(change: tuple[str, str], message: str) -> None:
        example.net.write_text(net.replace(*change))
        commands.train_refused(1, message)

    loss = ('  top: "loss"\n', '  top: "loss"\n  include {\n    phase: TEST\n  }\n')
    refused(loss, r"cifar10_quick_train_test\.prototxt: no layer of phase TRAIN is a loss.*add one")
    refused(('"Convolution"', '"Convolutoin"'), r"_train_test\.prototxt:37: .*did you mean Convolution\?")
    refused(("kernel_size: 5", "kernel_size: 50"), r"layer 'conv1' \(Convolution\)")
    crop = "transform_param {\n    crop_size: 40\n"
    refused(("transform_param {\n", crop), r"'cifar' \(Data\): crop_size is 40 and the images are 32x32")
    shape = "shape { dim: 20 dim: 1 dim: 28 dim: 28 }"
    inputs = (
        f'layer {{ name: "in" type: "Input" top: "data" input_param {{ {shape} }} include {{ phase: TRAIN }} }}'
    )
    text = re.sub(r'layer \{\n  name: "cifar".*?\n\}\n', "", net, count=1, flags=re.DOTALL)
    label = (
        'layer { name: "l" type: "Input" top: "label" input_param { shape { dim: 20 } } include { phase: TRAIN } }'
    )
    example.net.write_text(f"{inputs}\n{label}\n{text}")
    commands.train_refused(1, r"layer 'in' \(Input\): expected rows of shape \(1, 28, 28\), got \(3, 32, 32\)")


def test_a_net_that_is_only_trained(commands: Commands, example: Example) -> None:
    layers = re.split(r"(?<=\n\}\n)", example.net.read_text())
    example.net.write_text("".join(layer for layer in layers if 'name: "cifar"' not in layer or "TRAIN" in layer))
    example.solver.write_text(re.sub(r"test_\w+: .*\n", "", example.solver.read_text()))
    commands.train_refused(
        1, r"phase TEST has no data layer and every run is tested: add one with include \{ phase: TEST \}"
    )


def test_a_mean_of_another_shape(commands: Commands, example: Example) -> None:
    write_mean(example.directory / "mean.binaryproto", np.zeros((3, 8, 8), np.float32))
    commands.train_refused(2, r"has shape \(3, 8, 8\) and the rows have \(3, 32, 32\); they must be equal")


def test_a_snapshot_beyond_the_end(commands: Commands, tmp_path: Path) -> None:
    state = SavedState(iteration=24, current_step=0, learned_net="", history=())
    write_state(state, tmp_path / "x_iter_24.solverstate")
    commands.train_refused(
        2,
        r"the snapshot is at iteration 24 and max_iter is 24: raise max_iter in the solver file",
        **{"--snapshot": tmp_path / "x_iter_24.solverstate"},
    )


def test_settings_that_the_solver_file_makes(commands: Commands) -> None:
    commands.train_refused(
        2, r"solver\.momentum is 0\.5; solver\.prototxt says how to optimise", "--set", "solver.momentum=0.5"
    )


def test_a_table_whose_shape_nothing_tells(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").touch()
    source = {"--data": f"parquet:{tmp_path / 'rows.parquet'}"}
    commands.test_refused(
        2, r"neither the net's file nor source parquet tells the shape of a row.*--set data\.shape=", **source
    )


class Measured:
    """`sparknet test --model` with a measurement that is given, and no Spark."""

    def __init__(self, example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
        self.example = example
        self._patch = monkeypatch
        self.place = example.directory.parent / "temporary"
        self.place.mkdir()
        net = CaffeNet.from_prototxt(example.net, "TEST", input_shapes={"data": (10, 3, 32, 32), "label": (10,)})
        net.save_weights(example.directory / "whole.caffemodel")
        monkeypatch.setattr(tempfile, "tempdir", str(self.place))

    def run(self, measure: Callable[[], Measurement], *arguments: str) -> int:
        @contextmanager
        def opened(*_: object, log_path: Path, **__: object) -> Iterator[None]:
            log_path.write_text("WARN something")
            yield None

        self._patch.setattr(test_command, "check_java", lambda: "")
        self._patch.setattr(test_command, "session_for", opened)
        self._patch.setattr(test_command, "measure_source", lambda *_, **__: measure())
        weights = self.example.directory / "whole.caffemodel"
        files = {"--model": self.example.net, "--weights": weights, "--data": self.example.data}
        return main(["test", *(str(word) for pair in files.items() for word in pair), *arguments])

    @property
    def left(self) -> list[Path]:
        return list(self.place.rglob("spark.log"))


@pytest.fixture
def measured(example: Example, monkeypatch: pytest.MonkeyPatch) -> Measured:
    return Measured(example, monkeypatch)


def rows_measured(rows: int) -> Measurement:
    return Measurement(rows=rows, accuracy=0.75, loss=0.5, seconds=1.0)


def test_it_says_how_many_rows_were_tested(measured: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    assert measured.run(lambda: rows_measured(40), "--iterations", "4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4].endswith("tested 40 rows")
    assert lines[-3:] == ["Loss: 0.5", "accuracy = 0.75", "loss = 0.5 (* 1 = 0.5 loss)"]


def test_sparks_log_stays_only_where_it_may_tell_why(
    measured: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> Measurement:
        raise KeyboardInterrupt

    def failed() -> Measurement:
        raise ClusterError("Spark failed while testing the model")

    assert measured.run(lambda: rows_measured(40)) == 0
    assert measured.run(interrupted) == 130
    assert not list(measured.place.iterdir())
    capsys.readouterr()
    assert measured.run(failed) == 1
    (log,) = measured.left
    assert capsys.readouterr().err.splitlines()[1:] == [f"sparknet: Spark's own words are in {log}"]
