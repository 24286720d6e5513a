"""Channels of a Caffe net's images: what its data layers say, and what they leave to the files."""

from dataclasses import replace

import pytest

from sparknet.caffe.description.spec import NetSpec
from sparknet.config import Data, DataColumn
from sparknet.errors import ConfigError
from sparknet.training.caffe_runs.channels import with_channels

LMDB = Data(source="lmdb", path="/d", validation_fraction=0.1)
DATA = 'layer {{ name: "d" type: "Data" top: "x" top: "label" data_param {{ source: "/d" batch_size: 4 }} {} }}'
LIST = (
    'layer {{ name: "l" type: "ImageData" top: "{}" top: "label" '
    'image_data_param {{ source: "/l" batch_size: 4 {} }} }}'
)


def channels(text: str, data: Data = LMDB) -> str | None:
    return with_channels(data, NetSpec.from_text(text, "net")).column(data.input_names[0]).channels


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", "stored"),
        ("transform_param { force_color: true }", "colour"),
        ("transform_param { force_gray: true }", "grey"),
        ("include { phase: TEST }", "stored"),
    ],
)
def test_a_data_layer_leaves_images_as_they_are_unless_it_says_so(said: str, expected: str) -> None:
    assert channels(DATA.format(said)) == expected


def test_only_databases_are_left_as_they_are() -> None:
    folder = replace(LMDB, source="image_folder")
    assert channels(DATA.format(""), folder) is None
    assert channels(DATA.format("transform_param { force_gray: true }"), folder) == "grey"


@pytest.mark.parametrize(("said", "expected"), [("", "colour"), ("is_color: false", "grey")])
def test_a_list_of_images_says_whether_they_are_coloured(said: str, expected: str) -> None:
    assert channels(LIST.format("x", said), replace(LMDB, source="image_list")) == expected


def test_what_the_configuration_says_wins() -> None:
    assert channels(DATA.format(""), replace(LMDB, channels="grey")) == "grey"
    assert channels(DATA.format(""), replace(LMDB, shape=(1, 8, 8))) is None
    column = DataColumn(shape=(1, 8, 8))
    assert channels(DATA.format(""), replace(LMDB, columns={"image": column})) is None


def test_each_column_has_what_its_own_layer_says() -> None:
    text = DATA.format("") + LIST.format("mask", "is_color: false")
    data = replace(LMDB, inputs=("image", "mask"), source="lmdb")
    said = with_channels(data, NetSpec.from_text(text, "net"))
    assert (said.column("image").channels, said.column("mask").channels) == ("stored", "grey")
    assert said.column("label").channels is None


def test_phases_that_contradict_each_other_are_refused() -> None:
    phases = [
        DATA.format(f"include {{ phase: {phase} }} transform_param {{ {key}: true }}")
        for phase, key in (("TRAIN", "force_color"), ("TEST", "force_gray"))
    ]
    with pytest.raises(ConfigError, match="makes three channels of an image and layer 'd' one; both phases"):
        channels("".join(phases))
    one = DATA.format("include { phase: TRAIN } transform_param { force_color: true }")
    assert channels(one + DATA.format("include { phase: TEST }")) == "colour"


def test_nets_without_data_layers_say_nothing() -> None:
    text = 'layer { name: "i" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
    assert channels(text) is None
