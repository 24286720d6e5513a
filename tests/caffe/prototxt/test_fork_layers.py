"""What forks of Caffe add, told by whose it is."""

import pytest

from sparknet.caffe.layers import INPUT_LAYERS, LAYERS
from sparknet.caffe.prototxt import parse_text
from sparknet.caffe.prototxt.fork_layers import BVLC_TYPES, FIELDS, FOREIGN_LAYERS
from sparknet.caffe.schema import LayerParameter, NetParameter
from sparknet.errors import NetError


def refused(text: str) -> str:
    with pytest.raises(NetError) as caught:
        parse_text(text, NetParameter, source="a.prototxt")
    return str(caught.value)


def test_every_layer_type_is_bvlcs_or_a_forks():
    assert {*LAYERS, *INPUT_LAYERS} <= BVLC_TYPES
    assert not {*FOREIGN_LAYERS} & BVLC_TYPES
    assert not {*FIELDS} & set(LayerParameter.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(
    "text",
    [
        'layer {{ name: "a" type: "{kind}" what_param {{ order: 0 }} }}',
        'layer {{ name: "a" what_param {{ order: 0 }} bottom: "}}" type: "{kind}" }}',
        'layer {{ transform_param {{ what: [1, 2] }} include {{ phase: TEST }} type: "{kind}" }}',
        'layer {{ type: "{kind}" transform_param {{ distort_param {{ brightness: 0.5 }} }} }}',
        "layers {{ what_param {{ order: 0 }} type: {kind} }}",
        'layers {{ layer {{ what: 1 type: "{kind}" }} }}',
    ],
)
def test_a_foreign_layer_is_told_by_its_type_whichever_field_comes_first(text):
    for kind, known in FOREIGN_LAYERS.items():
        message = refused(text.format(kind=kind))
        assert f"type {kind} is " in message
        assert known.whose in message
        assert "did you mean" not in message


def test_a_field_of_a_fork_says_whose_it_is():
    for field, whose in FIELDS.items():
        message = refused(f'layer {{ name: "a" {field} {{ order: 0 }} }}')
        assert message.endswith(f"no field {field!r} in Caffe 1.0; it is of {whose}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "layers { type: ROI_POOLING }",
            "1:16: type 'ROI_POOLING' is no layer of BVLC Caffe but of Fast and Faster",
        ),
        ("layers { type: POOLINGS }", "did you mean 'POOLING'?"),
        (
            'layer { foo_param { x: 1 } type: "Foo" }',
            "1:9: type 'Foo' is no layer of BVLC Caffe, nor is 'foo_param'",
        ),
        ("layer { permut_param { x: 1 } }", "has no field 'permut_param'; it has name, type"),
        (
            "layer { convolutoin_param { x: 1 } }",
            "has no field 'convolutoin_param': did you mean 'convolution_param'?",
        ),
        ('layer { what: 1 type: "', "LayerParameter has no field 'what'; it has"),
        ("layer { what: 1 type: ", "LayerParameter has no field 'what'; it has"),
        ('layer { type: "MemoryData" source_class: "x" }', "it is of CaffeOnSpark (yahoo/CaffeOnSpark): it names"),
    ],
)
def test_fields_that_nobody_has_are_told_by_name_and_type(text, message):
    found = refused(text)
    assert message in found
    assert "parameter_param" not in found
