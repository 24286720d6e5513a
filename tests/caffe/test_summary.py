"""A net summed up: against sums done by hand, and against what is published of the nets."""

import math

import pytest
import torch

from places import REFERENCE
from sparknet.caffe import CaffeNet, zoo
from sparknet.caffe.summary import summarise

NETS = REFERENCE / "nets"

LENET = """
name: "LeNet"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 64 dim: 1 dim: 28 dim: 28 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 20 kernel_size: 5 } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
  convolution_param { num_output: 50 kernel_size: 5 } }
layer { name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool2" top: "ip1" inner_product_param { num_output: 500 } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2" inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "ip2" top: "prob" }
"""


def test_lenet_comes_to_what_is_known_of_it():
    summary = summarise(CaffeNet.from_prototxt(LENET, input_shapes={"data": (1, 1, 28, 28)}))
    assert summary.parameters == 431_080
    assert summary.parameter_bytes == 1_724_320
    by_name = {layer.name: layer for layer in summary.layers}
    assert list(by_name) == ["data", "conv1", "pool1", "conv2", "pool2", "ip1", "relu1", "ip2", "prob"]
    assert by_name["conv1"].multiply_adds == 24 * 24 * 20 * 25
    assert by_name["conv2"].multiply_adds == 8 * 8 * 50 * 20 * 25
    assert by_name["ip1"].multiply_adds == 800 * 500
    assert summary.multiply_adds == 288_000 + 1_600_000 + 400_000 + 5_000
    assert by_name["conv2"].shapes == ((1, 50, 8, 8),)
    assert by_name["relu1"].bottoms == by_name["relu1"].tops == ("ip1",)
    blobs = [(28, 28), (20, 24, 24), (20, 12, 12), (50, 8, 8), (50, 4, 4), (500,), (10,), (10,)]
    assert summary.blob_bytes == 4 * sum(math.prod(shape) for shape in blobs)
    assert summary.outputs == ("prob",)
    assert (summary.name, summary.phase) == ("LeNet", "TEST")


@pytest.mark.parametrize(
    ("net", "parameters", "multiply_adds"),
    [(zoo.caffenet, 60_965_224, 724_406_816), (zoo.googlenet, 6_998_552, 1_582_671_872)],
)
def test_larger_nets_come_to_the_published_figures(net, parameters, multiply_adds):
    with torch.device("meta"):  # without memory for the weights
        summary = summarise(CaffeNet(net(batch_size=1), "TEST", stages=["deploy"]))
    assert (summary.parameters, summary.multiply_adds) == (parameters, multiply_adds)


def test_the_batch_multiplies_arithmetic_and_blobs_and_no_parameters():
    one = summarise(CaffeNet.from_prototxt(LENET, input_shapes={"data": (1, 1, 28, 28)}))
    many = summarise(CaffeNet.from_prototxt(LENET))
    assert many.multiply_adds == 64 * one.multiply_adds
    assert many.blob_bytes == 64 * one.blob_bytes
    assert many.parameters == one.parameters


def test_a_shared_blob_counts_once():
    net = CaffeNet.from_prototxt(NETS / "shared_params/net.prototxt", "TRAIN")
    summary = summarise(net)
    by_name = {layer.name: layer.parameters for layer in summary.layers}
    assert by_name["conv_l"] == 76
    assert by_name["conv_r"] == by_name["turn_2"] == 0
    assert by_name["turn_1"] == 42
    assert summary.parameters == sum(blob.tensor.numel() for blob in net.learnable)


@pytest.mark.parametrize("folder", sorted(NETS.iterdir()), ids=lambda folder: folder.name)
def test_every_net_has_a_line_for_each_layer_and_top(folder):
    for phase in ("TRAIN", "TEST"):
        net = CaffeNet.from_prototxt(folder / "net.prototxt", phase)
        summary = summarise(net)
        assert [layer.name for layer in summary.layers] == [layer.name for layer in net.spec.parameters.layer]
        assert summary.parameters == sum(blob.tensor.numel() for blob in net.learnable)
        lines = summary.table().splitlines()
        assert len(lines) == 4 + sum(max(1, len(layer.tops)) for layer in summary.layers)


def test_the_table_reads_as_shown():
    text = """
    name: "two"
    layer { name: "in" type: "Input" top: "data" top: "label" input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "score" type: "InnerProduct" bottom: "data" top: "score"
      inner_product_param { num_output: 2000 } }
    layer { name: "loss" type: "EuclideanLoss" bottom: "score" bottom: "score" top: "loss" }
    layer { name: "quiet" type: "Silence" bottom: "label" }
    """
    assert summarise(CaffeNet.from_prototxt(text)).table().splitlines() == [
        "two, phase TEST",
        "layer  type           output        parameters  multiply-adds",
        "in     Input          data 2x3",
        "                      label 2x3",
        "score  InnerProduct   score 2x2000       8,000         12,000",
        "loss   EuclideanLoss  loss number",
        "quiet  Silence",
        "total                                    8,000         12,000",
        "parameters 0.0 MB, blobs 0.0 MB in float32; outputs: loss",
    ]
