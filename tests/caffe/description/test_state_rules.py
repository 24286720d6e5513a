"""Which layers exist: the rules one by one, and the states of the reference net against the blobs Caffe made."""

import json

import numpy as np
import pytest

from places import REFERENCE
from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.description.state_rules import select
from sparknet.caffe.prototxt import parse_text, read_text
from sparknet.caffe.schema import NetParameter
from sparknet.errors import NetError

CASES = REFERENCE
STATES = next(case for case in json.loads((CASES / "index.json").read_text())["cases"] if case["name"] == "rules")[
    "states"
]


def layer(rules: str) -> NetParameter:
    return parse_text(f"layer {{ name: 'a' {rules} }}", NetParameter).message


@pytest.mark.parametrize(
    ("rules", "state", "exists"),
    [
        ("", {"phase": "TRAIN"}, True),
        ("include { phase: TRAIN }", {"phase": "TRAIN"}, True),
        ("include { phase: TRAIN }", {"phase": "TEST"}, False),
        ("exclude { phase: TRAIN }", {"phase": "TRAIN"}, False),
        ("exclude { phase: TRAIN }", {"phase": "TEST"}, True),
        ("include { }", {"phase": "TEST"}, True),
        ("exclude { }", {"phase": "TEST"}, False),
        ("include { min_level: 1 }", {"phase": "TEST"}, False),
        ("include { min_level: 1 }", {"phase": "TEST", "level": 1}, True),
        ("include { max_level: 1 }", {"phase": "TEST", "level": 1}, True),
        ("include { max_level: 1 }", {"phase": "TEST", "level": 2}, False),
        ("include { max_level: -1 }", {"phase": "TEST"}, False),
        ("include { stage: 'a' }", {"phase": "TEST"}, False),
        ("include { stage: 'a' stage: 'b' }", {"phase": "TEST", "stages": ("a",)}, False),
        ("include { stage: 'a' stage: 'b' }", {"phase": "TEST", "stages": ("b", "c", "a")}, True),
        ("include { not_stage: 'a' }", {"phase": "TEST", "stages": ("b",)}, True),
        ("include { not_stage: 'a' not_stage: 'b' }", {"phase": "TEST", "stages": ("b",)}, False),
        ("include { stage: 'a' } include { stage: 'b' }", {"phase": "TEST", "stages": ("b",)}, True),
        ("exclude { stage: 'a' } exclude { stage: 'b' }", {"phase": "TEST", "stages": ("b",)}, False),
        ("phase: TEST", {"phase": "TRAIN"}, True),
    ],
)
def test_a_layer_exists_as_its_rules_say(rules, state, exists):
    assert select(layer(rules), **state) == ([0] if exists else [])


def test_both_kinds_of_rules_on_one_layer_are_an_error_even_if_the_state_meets_none():
    with pytest.raises(NetError, match=r"layer 'a' \(number 0\) has include and exclude rules"):
        select(layer("include { stage: 'x' } exclude { stage: 'y' }"), phase="TEST")


def test_a_phase_that_is_none_is_an_error():
    with pytest.raises(NetError, match="phase is 'Test'; a net has the phases TRAIN and TEST"):
        select(layer(""), phase="Test")  # type: ignore[arg-type]


@pytest.mark.parametrize("number", range(len(STATES)))
def test_the_layers_of_each_state_make_the_blobs_that_caffe_made(number):
    state = STATES[number]
    net = read_text(CASES / "nets" / "rules" / "net.prototxt", NetParameter).message
    chosen = [net.layer[index] for index in select(net, **state)]
    made = {top for layer in chosen if layer.type != "Input" for top in layer.top}
    with np.load(CASES / "nets" / "rules" / "forward.npz") as forward:
        # Caffe's own Split layers show as blobs with a name like base_base_0_split_1.
        blobs = {key.partition("/")[2] for key in forward if key.startswith(f"s{number}/")}
    assert made == {blob for blob in blobs if "_split_" not in blob}


def test_the_order_of_the_net_is_kept():
    net = read_text(CASES / "nets" / "rules" / "net.prototxt", NetParameter).message
    chosen = select(net, phase="TRAIN")
    assert chosen == sorted(chosen)
    assert [net.layer[index].name for index in chosen][:3] == ["in", "base", "squash"]


def test_a_state_that_the_file_itself_names_holds_beside_the_one_that_is_asked_for():
    rules = {
        "own": 'stage: "own"',
        "both": 'stage: "own" stage: "more"',
        "high": "min_level: 2",
        "low": "max_level: 1",
    }
    layers = "".join(
        f'layer {{ name: "{name}" type: "Silence" include {{ {rule} }} }}' for name, rule in rules.items()
    )
    spec = NetSpec.from_text('state { stage: "own" level: 2 } ' + layers, "net")

    def named(**state):
        return [layer.name for layer in spec.select("TEST", **state).parameters.layer]

    assert named() == ["own", "high"]
    assert named(stages=["more"]) == ["own", "both", "high"]
    assert named(level=1) == ["own", "low"]
