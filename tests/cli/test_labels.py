"""Labels that a net does not take are told before Spark starts, wherever they can be seen."""

from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from sparknet.caffe import CaffeNet, NetSpec
from sparknet.cli import test as test_command
from sparknet.cli import train as train_command
from sparknet.cli.main import main
from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.sources.datum import write

ROWS = 12
SOLVER = """net: "net.prototxt" base_lr: 0.05 lr_policy: "fixed" max_iter: 2 test_iter: 1 test_interval: 2
snapshot_prefix: "snap/net" """
NET = """
layer {{ name: "rows" type: "{kind}" top: "data" top: "label" {key} {{ source: "{source}" batch_size: 4 {more} }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param {{ num_output: 3 }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" {loss} }}
"""
Write = Callable[[Path, list[int]], dict[str, str]]


def lmdb(directory: Path, labels: list[int]) -> dict[str, str]:
    with DatabaseWriter(directory / "rows") as writer:
        for label in labels:
            writer.append(write(shape=(1, 2, 2), data=bytes(4), label=label))
    return {"kind": "Data", "key": "data_param", "source": "rows", "more": "backend: LMDB"}


def hdf5(directory: Path, labels: list[int]) -> dict[str, str]:
    with h5py.File(directory / "rows.h5", "w") as file:
        file["data"], file["label"] = np.zeros((len(labels), 4), np.float32), np.asarray(labels, np.float32)
    (directory / "rows").write_text("rows.h5\n")
    return {"kind": "HDF5Data", "key": "hdf5_data_param", "source": "rows", "more": ""}


def image_list(directory: Path, labels: list[int]) -> dict[str, str]:
    cv2.imwrite(str(directory / "black.png"), np.zeros((2, 2, 3), np.uint8))
    (directory / "rows").write_text("".join(f"{directory}/black.png {label}\n" for label in labels))
    return {"kind": "ImageData", "key": "image_data_param", "source": "rows", "more": ""}


FORMATS = pytest.mark.parametrize("source", [lmdb, hdf5, image_list], ids=lambda source: source.__name__)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which commands end where they would start Spark."""

    def starts(*_: object, **__: object) -> None:
        raise AssertionError("this would start Spark")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_command, "train_in", starts)
    monkeypatch.setattr(test_command, "session_for", starts)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 1
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    return line


def write_net(source: Write, here: Path, labels: list[int], loss: str = "") -> None:
    (here / "net.prototxt").write_text(NET.format(**source(here, labels), loss=loss))
    (here / "solver.prototxt").write_text(SOLVER)


@FORMATS
def test_labels_from_one(source: Write, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_net(source, here, [1, 2, 3] * (ROWS // 3))
    line = refused(capsys, "train", "--solver", "solver.prototxt")
    assert "layer 'loss' (SoftmaxWithLoss): column label has 3 in " in line
    assert "it takes whole numbers from 0 to 2: the labels are numbered from 1, and must be from 0" in line
    assert not (here / "runs").exists()


@FORMATS
def test_minus_one_without_leave(source: Write, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_net(source, here, [0, -1, 2] * (ROWS // 3))
    line = refused(capsys, "train", "--solver", "solver.prototxt")
    assert "if -1 marks what does not count, set ignore_label in loss_param to -1" in line


@FORMATS
def test_with_leave_they_are_let_through(source: Write, here: Path) -> None:
    write_net(source, here, [0, -1, 2] * (ROWS // 3), "loss_param { ignore_label: -1 }")
    with pytest.raises(AssertionError, match="this would start Spark"):
        main(["train", "--solver", "solver.prototxt"])


def test_rows_that_are_tested(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_net(lmdb, here, [0, 1, 5])
    shapes = {"data": (4, 1, 2, 2), "label": (4,)}
    CaffeNet(NetSpec.from_prototxt("net.prototxt"), "TEST", input_shapes=shapes).save_weights("w.caffemodel")
    line = refused(capsys, "test", "--model", "net.prototxt", "--weights", "w.caffemodel")
    assert "column label has 5 in row 2 of partition 0" in line
