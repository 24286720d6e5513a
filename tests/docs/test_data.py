"""docs/data.md and docs/caffe.md are held to the code: commands parse, configurations are valid."""

import re
import tomllib

import pytest

from places import REPOSITORY
from sparknet.cli import main
from sparknet.config import RunConfig, decode
from sparknet.data.sources.registry import FORMATS

DOCS = REPOSITORY / "docs"
PAGE = (DOCS / "data.md").read_text(encoding="utf-8")


def blocks(page, language):
    # All of them, since the end of one looks like the beginning of one without a language.
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


def commands(page):
    return [line for block in blocks(page, "") for line in block.splitlines() if line.startswith("sparknet ")]


@pytest.mark.parametrize("name", ["data.md", "caffe.md"])
def test_every_command_parses(name):
    found = commands((DOCS / name).read_text(encoding="utf-8"))
    assert len(found) >= 5
    for command in found:
        assert main._parser().parse_args(command.partition("#")[0].split()[1:]).module


def test_every_configuration_is_valid():
    found = blocks(PAGE, "toml")
    assert len(found) == 3
    for block in found:
        assert decode(RunConfig, tomllib.loads(block)).data.path


def test_every_source_is_told_of():
    for source in FORMATS:
        assert f"| `{source}` |" in PAGE
