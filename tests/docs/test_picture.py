"""The README's picture is drawn from a run's records and asks nobody for anything."""

import importlib.util
import json
import re
from xml.etree import ElementTree

import pytest

from places import REPOSITORY

PROGRAM = REPOSITORY / "docs" / "make_picture.py"


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    run_dir = tmp_path_factory.mktemp("run")
    records = [
        {
            "event": "run_started",
            "elapsed_seconds": 1.0,
            "name": "digits",
            "rounds": 1,
            "workers": 1,
            "run_dir": "r",
        },
        {"event": "round", "elapsed_seconds": 2.0, "round": 1, "loss": 0.5, "images_per_second": 1.0},
        {"event": "run_finished", "elapsed_seconds": 3.0, "accuracy": 0.9861, "rounds": 1, "seconds": 3.0},
    ]
    (run_dir / "events.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run_dir / "result.json").write_text(json.dumps({"accuracy": 0.9861, "seconds": 3.0, "sync_seconds": 0.3}))
    spec = importlib.util.spec_from_file_location("make_picture", PROGRAM)
    assert spec
    assert spec.loader
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program.draw_run(run_dir)


def test_it_shows_the_lines_the_bar_and_the_summary(picture):
    shown = " ".join("".join(ElementTree.fromstring(picture).itertext()).replace("\xa0", " ").split())
    assert re.search(r"finished: accuracy 98\.61 % after 1 rounds? in 3\.0 s", shown)
    assert re.search(r"round 1 of 1", shown)
    assert re.search(r"synchronising *0\.3 s, 10\.0 % of the time", shown)


def test_it_makes_no_request(picture):
    assert set(re.findall(r"https?://[^\"' )]+", picture)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in picture
    assert "url(http" not in picture
