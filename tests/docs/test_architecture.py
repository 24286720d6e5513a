"""docs/architecture.md names files that are there, every room, and at most two files for each thing to add."""

import re

import pytest

from places import REPOSITORY

SOURCES = REPOSITORY / "src" / "sparknet"
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = {str(file.relative_to(SOURCES)) for file in SOURCES.rglob("*.py")}
SECTIONS = {section.splitlines()[0]: section for section in PAGE.split("\n## ")[1:]}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/]+\.py)`", PAGE))))
def test_every_file_is_there(name):
    # A way names a file in full once, and by its last part where the room is clear.
    assert any(file == name or file.endswith(f"/{name}") for file in FILES)


def test_every_room_is_drawn():
    rooms = {file.rsplit("/", 1)[0] for file in FILES if file.count("/") == 2}
    drawn = set(re.findall(r"[\w]+", SECTIONS["The rooms"]))
    assert {room.rsplit("/", 1)[1] for room in rooms} <= drawn


@pytest.mark.parametrize("way", ["The way of an image", "The way of a prototxt", "The way of a vote"])
def test_a_way_is_told_in_about_a_dozen_steps(way):
    steps = re.findall(r"^\d+\. ", SECTIONS[way], flags=re.MULTILINE)
    assert 6 <= len(steps) <= 12


def test_nothing_to_add_takes_more_than_two_files():
    rows = [line for line in SECTIONS["How to add …"].splitlines() if line.startswith("| a")]
    assert len(rows) == 4
    for row in rows:
        assert 1 <= len(re.findall(r"`[\w/]+\.py`|`[\w/]+/`", row)) <= 2, row
