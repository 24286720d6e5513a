"""docs/nets.md is held to the code: its tables are generated, its code blocks run."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from image_rows import image_rows
from places import REPOSITORY
from sparknet.caffe import CaffeNet, NetSpec, zoo
from sparknet.caffe.dsl import Options
from sparknet.caffe.layers import INPUT_LAYERS, LAYERS
from sparknet.config import Net, decode
from sparknet.training.objectives.find_net import build_net
from sparknet.training.objectives.recipe import Recipe

DOCS = REPOSITORY / "docs"
PAGE = (DOCS / "nets.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def file_name(block: str) -> str:
    """Of a block that begins with a comment that is nothing but a file's name."""
    found = re.match(r"# (\w+\.\w+)\n", block)
    return found[1] if found else ""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the page shows."""
    for block in blocks("prototxt") + blocks("python"):
        if file_name(block):
            (tmp_path / file_name(block)).write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_nets", DOCS / "make_nets.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_what_the_code_gives():
    assert program().page() == PAGE, "run: python docs/make_nets.py"


def test_nothing_is_left_out():
    assert all(f"| `{name}` |" in PAGE for name in [*zoo.__all__, *LAYERS])
    assert all(f"`{name}`" in PAGE for name in [*INPUT_LAYERS, *Options.__annotations__])


def test_python_blocks_run_one_after_the_other(folder, capsys):
    namespace: dict[str, object] = {}
    run = [block for block in blocks("python") if not file_name(block)]
    assert len(run) >= 6
    for block in run:
        exec(compile(block, "docs/nets.md", "exec"), namespace)
    assert capsys.readouterr().out == "('loss',)\n(32, 10)\ntorch.Size([10, 64])\n"


def test_prototxt_blocks_are_nets(folder):
    shown = blocks("prototxt")
    assert shown
    for block in shown:
        spec = NetSpec.from_prototxt(block)
        assert CaffeNet(spec, "TRAIN").outputs == ("loss",)
        assert CaffeNet(spec, "TEST").outputs == ("accuracy", "loss")


def test_configurations_build_the_nets_they_name(folder, monkeypatch):
    (shown,) = blocks("toml")
    net = decode(Net, tomllib.loads(shown)["net"])
    built = build_net(Recipe(net=net), image_rows((123,), classes=2), seed=0)
    monkeypatch.delitem(sys.modules, "my_nets")
    assert isinstance(built, CaffeNet)
    assert built.shapes["ip1"] == (64, 32)
