"""The README's Python and its commands are held to the code."""

import ast
import re

import torch

from places import REPOSITORY
from sparknet.caffe import CaffeNet, zoo
from sparknet.cli import main
from sparknet.ml import SparkNetClassifier

PAGE = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    # All of them, so that the end of one is not taken for the beginning of the next.
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [block for own, block in found if own == language]


def test_the_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CaffeNet(zoo.googlenet(), "TRAIN").save_weights("bvlc_googlenet.caffemodel")
    block = next(block for block in blocks("python") if "CaffeNet" in block)
    names = {"images": torch.zeros(2, 3, 224, 224)}
    exec(compile(block, "README.md", "exec"), names)
    assert names["probabilities"].shape == (2, 1000)


def test_the_block_of_the_estimator_sets_params_that_there_are():
    block = next(block for block in blocks("python") if "SparkNetClassifier(" in block)
    (call,) = (
        node
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "SparkNetClassifier"
    )
    estimator = SparkNetClassifier()
    assert call.keywords
    assert all(estimator.hasParam(keyword.arg) for keyword in call.keywords)


def test_every_command_parses():
    commands = [line for block in blocks("") for line in block.splitlines() if line.startswith("sparknet ")]
    assert len(commands) > 5
    for command in commands:
        assert main._parser().parse_args(command.partition("#")[0].split()[1:]).module
