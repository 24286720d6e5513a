"""A run in the cell of a notebook."""

import html
import re

import pytest

from sparknet.reporting.notebook import NotebookConsole, display_in_notebook

STARTED = {
    "event": "run_started",
    "elapsed_seconds": 1.0,
    "name": "digits",
    "run_dir": "runs/digits",
    "net": "lenet",
    "parameters": 10,
    "workers": 2,
    "rounds": 10,
    "first_round": 1,
    "local_steps": 10,
    "iterations": 100,
    "strategy": "average",
    "training_rows": 50,
    "validation_rows": 20,
    "columns": ["image 3"],
}


def committed(number):
    return {
        "event": "round",
        "elapsed_seconds": 1.0 + number,
        "round": number,
        "slots": [0, 1],
        "samples": 200,
        "loss": 1.0,
        "images_per_second": 10.0,
        "sync_share": 0.1,
    }


@pytest.fixture
def shown():
    return []


@pytest.fixture
def console(shown):
    return NotebookConsole(shown.append, clock=lambda: 5.0)


def text(markup):
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def test_the_lines_stand_above_the_numbers(console, shown):
    console.on_event(STARTED)
    console.on_event(committed(1))
    console.close()
    said = text(shown[-1])
    assert said.index("digits: lenet") < said.index("round 1 of 10")
    # On a page of any colour.
    assert "#000000" not in shown[-1]


def test_what_comes_in_the_same_moment_is_shown_once(console, shown):
    console.on_event(STARTED)
    before = len(shown)
    for number in range(1, 9):
        console.on_event(committed(number))
    assert len(shown) == before
    console.close()
    assert "round 8 of 10" in text(shown[-1])


def test_the_summary_takes_the_place_of_the_numbers(console, shown):
    console.on_event(STARTED)
    console.print_result({"accuracy": 0.75, "rounds": 10, "workers": 2})
    assert "75.00 %" in text(shown[-1])
    assert "round" not in text(shown[-1]).split("runs/digits")[1].split("rounds")[0]


def test_a_name_is_no_markup(console, shown):
    console.on_event({**STARTED, "name": "<b>x</b>"})
    assert "<b>x" not in shown[-1]
    assert "<b>x</b>" in text(shown[-1].replace("&lt;", "&lt;"))


def test_a_program_is_no_notebook():
    assert display_in_notebook() is None
