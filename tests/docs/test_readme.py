"""The README's Python and its commands are held to the code."""

import re

import torch

from places import REPOSITORY
from sparknet.caffe import CaffeNet, zoo
from sparknet.cli import main

PAGE = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CaffeNet(zoo.googlenet(), "TRAIN").save_weights("bvlc_googlenet.caffemodel")
    (block,) = blocks("python")
    names = {"images": torch.zeros(2, 3, 224, 224)}
    exec(compile(block, "README.md", "exec"), names)
    assert names["probabilities"].shape == (2, 1000)


def test_every_command_parses():
    commands = [line for block in blocks("") for line in block.splitlines() if line.startswith("sparknet ")]
    assert len(commands) > 5
    for command in commands:
        assert main._parser().parse_args(command.partition("#")[0].split()[1:]).module
