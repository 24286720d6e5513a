"""Errors name the option that was typed, and nothing of the language that the commands are written in."""

import re
from argparse import Namespace
from pathlib import Path

import pytest

from sparknet.cli.main import main
from sparknet.cli.spoken import spoken

SOLVER = 'net: "net.prototxt" base_lr: 0.05 lr_policy: "fixed" max_iter: 8'
NET = """
layer { name: "d" type: "Data" top: "data" top: "label"
  data_param { source: "none_lmdb" batch_size: 4 backend: LMDB } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 10 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
TRAIN = "train --solver solver.prototxt"
OPTION = Namespace(module="sparknet.cli.train", set=[], data="lmdb:x", weights=None, run_dir=None)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("correct data.path", "correct --data"),
        ("correct data.path or data.validation_path", "correct --data or data.validation_path"),
        ("name rows (data.source, --data)", "name rows (--data, --data)"),
        ("/x/data.path: no such file", "/x/data.path: no such file"),
        ("say --set data.path=PATH", "say --set data.path=PATH"),
        ("set data.pathological", "set data.pathological"),
        ("set net.weights", "set net.weights"),  # which was not typed
    ],
)
def test_a_setting_is_called_as_the_option_that_was_typed(message: str, told: str) -> None:
    assert spoken(message, OPTION) == told


def test_a_setting_that_was_typed_itself_keeps_its_name() -> None:
    typed = Namespace(module="sparknet.cli.train", set=["data.path=x"], data="lmdb:x", run_dir=None)
    assert spoken("correct data.path", typed) == "correct data.path"


def test_a_configuration_keeps_its_names() -> None:
    assert spoken("correct data.path", Namespace(module="sparknet.cli.train", data=None)) == "correct data.path"


def test_other_rows_that_a_run_is_tested_on() -> None:
    tested = Namespace(module="sparknet.cli.test", set=[], data="there", run_dir=Path("run"))
    assert spoken("correct data.validation_path", tested) == "correct --data"


WRONG = {
    f"{TRAIN} --data cifar10:nowhere": "correct --data",
    f"{TRAIN} --data mnist:nowhere": "correct --data",
    f"{TRAIN} --data lmdb:nowhere --set data.validation=none": "nowhere",
    f"{TRAIN} --data image_list:nowhere --set data.validation=none": "correct --data",
    f"{TRAIN} --data image_folder:nowhere --set data.validation=none": "correct --data",
    f"{TRAIN} --data csv:nowhere --set data.validation=none": "correct --data",
    f"{TRAIN} --data digits --set data.labels=x.txt": "data.labels is",
    f"{TRAIN} --data digits --set data.validation_path=x": "data.validation_fraction",
    f"{TRAIN} --data digits --set data.shape=[1,0,8]": "data.shape is [1, 0, 8]",
    f"{TRAIN} --data digits --set run.early_stop.patience=0": "patience",
    f"{TRAIN} --data digits --weights none.caffemodel": "none.caffemodel cannot be read",
    f"{TRAIN} --data digits --net none.prototxt": "none.prototxt",
    f"{TRAIN} --data nonsense:x": "--data",
    "train none.toml": "none.toml: no such file",
    "resume nowhere": "nowhere holds no run",
    "test nowhere --data x": "nowhere holds no run",
    "test --model net.prototxt --weights none.caffemodel --data digits": "none.caffemodel cannot be read",
    "test --model net.prototxt --weights none.caffemodel --data cifar10:nowhere": "correct --data",
    "caffe summary net.prototxt": "--shape data=N,C,H,W",
    "caffe summary none.prototxt": "none.prototxt",
    "caffe export net.prototxt --weights none.caffemodel --to x.onnx": "--shape data=N,C,H,W",
    "caffe upgrade none.prototxt": "none.prototxt",
    "data to-lmdb lmdb:nowhere --to out": "set SOURCE",
}


@pytest.mark.parametrize("command", WRONG)
def test_wrong_words_are_answered_in_the_same_words(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text(SOLVER)
    assert main(command.split()) in (1, 2)
    told = capsys.readouterr().err
    assert WRONG[command] in told
    typed = r"data\.path\b|data\.source\b|net\.weights\b|input_shapes="
    language = r"PosixPath|\bNone\b|\bTrue\b|\bFalse\b|\(''|<class|unexpected keyword|Traceback|\['"
    assert not re.search(f"{typed}|{language}", told), told
