"""docs/any_net.md, docs/gpus.md and the examples: every block of them is a valid configuration."""

import re
import tomllib
from pathlib import Path

import pytest

from places import REPOSITORY
from sparknet.config import Cluster, Data, Net, Objective, Run, Solver, Sync, decode, load_config

SECTIONS = {
    "cluster": Cluster,
    "data": Data,
    "net": Net,
    "objective": Objective,
    "run": Run,
    "solver": Solver,
    "sync": Sync,
}
PAGES = ("any_net.md", "gpus.md")
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.toml"))


def blocks(page: str) -> list[str]:
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```toml\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_valid(page: str) -> None:
    shown = blocks(page)
    assert shown
    for block in shown:
        for name, table in tomllib.loads(block).items():
            decode(SECTIONS[name], table, where=name)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_of_one_screen_and_named_by_their_page(path: Path) -> None:
    load_config(path)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
    assert f"sparknet train {path.name}" in (REPOSITORY / "docs" / "any_net.md").read_text(encoding="utf-8")


def test_the_page_of_gpus_names_every_way() -> None:
    text = (REPOSITORY / "docs" / "gpus.md").read_text(encoding="utf-8")
    for way in ("spark", "file", "redis", "auto"):
        assert f"| `{way}` |" in text
