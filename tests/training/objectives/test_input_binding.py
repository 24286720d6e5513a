"""Which input of a net is given which column, and rows that do not fit."""

import pytest
import torch

from image_rows import as_batch, image_rows
from sparknet.caffe import NetSpec
from sparknet.config import Data, DataColumn
from sparknet.data.rows.columns import Column
from sparknet.errors import ConfigError, NetError
from sparknet.training.objectives.input_binding import (
    batch_in_file,
    check_augmentation,
    input_rows,
    inputs_of,
    intake_of,
    seen_rows,
    transform_of,
)


def rows(shape=(3, 8, 8), *, image="image", label="label"):
    return image_rows(shape, names=(image, label))


def image_of(intake):
    return next(bound.blob.name for bound in intake.bound if bound.column == "image")


def inputs(text):
    """A net of input layers alone, as one state of it."""
    return NetSpec.from_prototxt(f'name: "n"\n{text}\n').select("TRAIN")


def taken(text, **options):
    intake = intake_of(inputs(text), rows(**options), batch=4, phase="TRAIN")
    names = {bound.column: bound.blob.name for bound in intake.bound}
    image, label = options.get("image", "image"), options.get("label", "label")
    return names[image], names.get(label), intake.shapes


DATA = 'layer { name: "d" type: "Data" top: "x" top: "y" data_param { batch_size: 7 } transform_param { %s } }'


def test_a_data_layers_tops_are_image_and_label():
    assert taken(DATA % "") == ("x", "y", {"x": (4, 3, 8, 8), "y": (4,)})
    assert taken(DATA % "crop_size: 5")[2]["x"] == (4, 3, 5, 5)
    alone = DATA.replace('top: "y"', "")
    assert taken(alone % "") == ("x", None, {"x": (4, 3, 8, 8)})
    assert batch_in_file(inputs(DATA % "")) == 7


def named(*blobs):
    layers = [
        f'layer {{ name: "in_{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}'
        for name, dims in blobs
    ]
    return "\n".join(layers)


IMAGE, LABEL = "dim: 9 dim: 3 dim: 8 dim: 8", "dim: 9"


def test_other_inputs_are_told_by_their_names():
    assert taken(named(("data", IMAGE), ("label", LABEL)))[:2] == ("data", "label")
    assert taken(named(("label", LABEL), ("anything", IMAGE)))[:2] == ("anything", "label")
    assert taken(named(("a", IMAGE), ("b", LABEL)), image="a", label="b")[:2] == ("a", "b")
    assert batch_in_file(inputs(named(("data", IMAGE)))) == 9
    assert input_rows(inputs(named(("data", IMAGE), ("label", LABEL)))) == (3, 8, 8)


def test_labels_take_the_inputs_shape():
    intake = intake_of(
        inputs(named(("data", IMAGE), ("label", "dim: 9 dim: 1 dim: 1 dim: 1"))), rows(), batch=4, phase="TRAIN"
    )
    given = intake.blobs(as_batch(torch.zeros(2, 3, 8, 8), torch.tensor([1, 2])))
    assert given["label"].shape == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            named(("a", IMAGE), ("b", IMAGE)),
            r"inputs a \(Input\), b \(Input\); .*columns image, label.* a, b is not known: name",
        ),
        ("", r"phase TRAIN has no data layer: add one with include \{ phase: TRAIN \}"),
        (
            named(("data", "dim: 9 dim: 1 dim: 28 dim: 28")),
            r"'in_data' \(Input\): expected rows of shape \(1, 28, 28\)",
        ),
        (
            named(("data", IMAGE), ("label", "dim: 9 dim: 5")),
            r"expected labels of shape \(5,\) a row, got one number in column label",
        ),
        (DATA % "crop_size: 9", r"'d' \(Data\): crop_size is 9 and the images are 8x8"),
    ],
)
def test_what_does_not_fit_is_named(text, message):
    with pytest.raises(NetError, match=message):
        taken(text)


def test_a_net_with_training_rows_alone_is_told_what_to_add():
    spec = NetSpec.from_prototxt(DATA.replace("top: ", "include { phase: TRAIN } top: ", 1) % "")
    assert image_of(intake_of(spec.select("TRAIN"), rows(), batch=4, phase="TRAIN")) == "x"
    wanted = r"phase TEST has no data layer and every run is tested: add one with include \{ phase: TEST \}"
    with pytest.raises(NetError, match=wanted):
        intake_of(spec.select("TEST"), rows(), batch=4, phase="TEST")


def data(**settings):
    return Data(source="digits", validation_fraction=0.2, **settings)


def test_a_net_sees_the_square_that_is_cut_out():
    whole = rows()
    assert seen_rows(whole, data()) == whole
    assert seen_rows(whole, data(mirror=True)) == whole
    seen = seen_rows(whole, data(crop=5))
    assert seen.input == Column(name="image", dtype="uint8", shape=(3, 5, 5))
    assert (seen.label, seen.classes) == (whole.label, whole.classes)
    shapes = intake_of(inputs(named(("data", "dim: 9 dim: 3 dim: 5 dim: 5"))), seen, batch=4, phase="TRAIN").shapes
    assert shapes["data"] == (4, 3, 5, 5)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((3, 8, 7), {"crop": 8}, r"data\.crop is 8 and the images are 8x7; .*lower data\.crop, or give larger"),
        (
            (12,),
            {"crop": 8},
            r"data\.crop is 8 and the rows have shape \(12,\); it takes .*set data\.shape, or leave",
        ),
        ((12,), {"mirror": True}, r"data\.mirror is True and the rows have shape \(12,\).*leave data\.mirror out"),
    ],
)
def test_rows_that_cannot_be_cut_or_mirrored(shape, settings, message):
    with pytest.raises(ConfigError, match=message):
        seen_rows(rows(shape), data(**settings))


@pytest.mark.parametrize("transform", ["", "crop_size: 6", "mirror: true"])
@pytest.mark.parametrize("key", ["crop", "mirror"])
def test_a_data_layer_says_itself_what_is_cut_and_mirrored(transform, key):
    blob = inputs_of(inputs(DATA % transform))[0]
    said = {
        "crop": rf"crop_size {blob.transform.crop_size}",
        "mirror": f"mirror: {transform.count('true') > 0}".lower(),
    }
    message = rf"data\.{key} is \w+ and layer 'd' \(Data\) has {said[key]} in its .*; .*leave data\.{key} out"
    said = transform_of(blob, "TRAIN")
    with pytest.raises(ConfigError, match=message):
        check_augmentation(said, DataColumn(**{key: 5 if key == "crop" else True}), key="data.{}".format)
    check_augmentation(said, DataColumn(), key="data.{}".format)


def test_it_is_refused_where_the_net_is_built_too():
    given = data(crop=5)
    cut = seen_rows(rows(), given)
    with pytest.raises(ConfigError, match=r"data\.crop is 5 and layer 'd' \(Data\) has crop_size 0"):
        intake_of(inputs(DATA % ""), cut, batch=4, phase="TRAIN", data=given)


def test_an_input_layer_has_nothing_to_say():
    blob = inputs_of(inputs(named(("data", IMAGE))))[0]
    assert transform_of(blob, "TRAIN") is None
    given = data(crop=5, mirror=True)
    net = inputs(named(("data", "dim: 9 dim: 3 dim: 5 dim: 5")))
    assert image_of(intake_of(net, seen_rows(rows(), given), batch=4, phase="TRAIN", data=given)) == "data"
