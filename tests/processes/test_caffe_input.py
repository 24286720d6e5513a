"""What a Caffe user can get wrong: found before Spark starts, told in one line with what to do."""

import re
from pathlib import Path

import numpy as np
import pytest

from caffe_example import Example, write_example
from sparknet.cli.main import main
from sparknet.nets import CaffeNet
from sparknet.nets.schema import NetParameter
from sparknet.nets.weights.mean_image import write_mean
from sparknet.spark import session
from sparknet.training.solver.solverstate import SavedState, write_state


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
    refused(2, "--solver is missing; sparknet train takes CONFIG, or --solver and --data", "train")
    refused(2, "--data is missing; .*KIND:PATH", "train", "--solver", solver)
    refused(2, "a.toml and --solver are given; .*leave one of them out", "train", "a.toml", "--solver", solver)
    commands.train_refused(
        2,
        "--weights a and --snapshot b are given; a snapshot brings its own",
        **{"--weights": "a", "--snapshot": "b"},
    )
    refused(2, "--model, --weights, --data missing; sparknet test takes RUN_DIR", "test")
    refused(2, "--weights, --data missing", "test", "--model", example.net)
    refused(2, "run and --iterations are given", "test", "run", "--iterations", 3)


def test_sources(commands: Commands, tmp_path: Path) -> None:
    refused = commands.train_refused
    refused(2, r"'cifar' is no kind of data: did you mean cifar10\?", **{"--data": "cifar:x"})
    refused(2, "'lmdb' is no kind of data: .*There are digits, cifar10:PATH", **{"--data": "lmdb:/x"})
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
    commands.test_refused(2, r"mean_file: .*cannot be read")


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


def test_a_mean_of_another_shape(commands: Commands, example: Example) -> None:
    write_mean(example.directory / "mean.binaryproto", np.zeros((3, 8, 8), np.float32))
    commands.train_refused(2, r"has shape \(3, 8, 8\) and the rows have \(3, 32, 32\); they must be equal")


def test_a_snapshot_between_rounds(commands: Commands, tmp_path: Path) -> None:
    state = SavedState(iteration=6, current_step=0, learned_net="", history=())
    write_state(state, tmp_path / "x_iter_6.solverstate")
    commands.train_refused(
        2,
        r"of iteration 6 and sync\.local_steps is 10; .*set sync\.local_steps to one of 1, 2, 3, 6",
        **{"--snapshot": tmp_path / "x_iter_6.solverstate"},
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
