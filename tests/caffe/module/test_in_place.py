"""Layers whose top is their bottom: what Caffe refuses, and where it computes something else."""

import pytest
import torch

from sparknet.caffe import CaffeNet
from sparknet.caffe.layers import LAYERS
from sparknet.errors import NetError

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: [2, 3, 4, 4] } } }\n'
RIGHT = "ReLU PReLU ELU Sigmoid TanH Exp Threshold Swish Dropout BatchNorm Scale Bias Softmax Concat Slice"
SAME = {"convolution_param": "num_output: 3 kernel_size: 1", "pooling_param": "kernel_size: 1"}


def made(kind: str, more: str = "", phase: str = "TRAIN") -> CaffeNet:
    text = f'layer {{ name: "l" type: "{kind}" bottom: "x" top: "x" {more} }}'
    return CaffeNet.from_prototxt(INPUT + text, phase)


@pytest.mark.parametrize("kind", ["AbsVal", "Flatten", "Reshape", "Split"])
def test_what_caffe_checks_is_refused(kind):
    with pytest.raises(
        NetError, match=rf"<text>:2: layer 'l' \({kind}\): its top is its bottom 'x'; Caffe computes no"
    ):
        made(kind, "reshape_param { shape { dim: [0, -1] } }" if kind == "Reshape" else "")


def test_no_other_layer_is_refused():
    assert {kind for kind, layer in LAYERS.items() if layer.caffe_in_place == "refused"} == {
        "AbsVal",
        "Flatten",
        "Reshape",
        "Split",
    }


@pytest.mark.parametrize("kind", RIGHT.split())
def test_what_caffe_computes_in_place_as_well_is_not_worth_a_word(kind, caplog):
    made(kind)
    assert not caplog.messages


@pytest.mark.parametrize("kind", ["BNLL", "Log", "Clip", "Power", "MVN"])
def test_a_gradient_that_caffe_takes_from_what_is_overwritten_is_told(kind, caplog):
    more = "clip_param { min: 0 max: 1 }" if kind == "Clip" else ""
    made(kind, more, "TEST")
    assert not caplog.messages
    net = made(kind, more)
    assert "in place Caffe takes the gradient from what it has overwritten" in caplog.messages[0]
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    apart = CaffeNet.from_prototxt(
        INPUT + f'layer {{ name: "l" type: "{kind}" bottom: "x" top: "y" {more} }}', "TRAIN"
    )
    weights = torch.rand(2, 3, 4, 4)
    (one,) = torch.autograd.grad((net({"x": x})["x"] * weights).sum(), x)
    (other,) = torch.autograd.grad((apart({"x": x})["y"] * weights).sum(), x)
    assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["LRN", "Convolution", "Pooling"])
def test_values_that_caffe_still_reads_where_it_has_overwritten_them_are_told(kind, caplog):
    made(
        kind, " ".join(f"{field} {{ {said} }}" for field, said in SAME.items() if kind.lower()[:4] in field), "TEST"
    )
    assert "in place Caffe overwrites what it still reads" in caplog.messages[0]
