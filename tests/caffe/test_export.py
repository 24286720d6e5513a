"""Nets in other formats: what the files hold, read by others than us."""

import os

import numpy as np
import pytest
import torch
from safetensors import safe_open

from places import REFERENCE
from sparknet.caffe import CaffeNet, NetSpec, export
from sparknet.errors import MissingDependency, NetError

NETS = REFERENCE / "nets"


def reference(name, phase="TEST"):
    folder = NETS / name
    net = CaffeNet.from_prototxt(folder / "net.prototxt", phase)
    net.load_weights(folder / "weights.caffemodel")
    inputs = np.load(folder / "inputs.npz")
    return net, {name: torch.from_numpy(inputs[name]) for name in net.inputs}


def values(net, inputs):
    with torch.no_grad():
        return {name: blob.numpy() for name, blob in net.eval()(inputs).items()}


def run_onnx(path, inputs):
    """By ONNX's own reference implementation, which shares no code with torch."""
    from onnx import load
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(load(path))
    results = evaluator.run(None, {name: inputs[name].numpy() for name in evaluator.input_names})
    return dict(zip(evaluator.output_names, results, strict=True))


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert np.abs(found[name] - value).max() <= 1e-5 * max(1e-6, np.abs(value).max()), name


@pytest.mark.parametrize("name", ["lenet_like", "shared_params", "residual_bn_scale"])
def test_safetensors_hold_the_weights_and_the_net(name, tmp_path):
    net, inputs = reference(name)
    path = tmp_path / "net.safetensors"
    export.export(net, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
    assert tensors.keys() == net.state_dict().keys()
    again = CaffeNet(NetSpec.from_prototxt(metadata["prototxt"]), metadata["phase"])
    again.load_state_dict(tensors)
    close(values(again, inputs), values(net, inputs))


EVERY_OPERATOR = """
name: "every operator that the reference nets come to"
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 8 dim: 9 } } }
layer { name: "in2" type: "Input" top: "label" input_param { shape { dim: 4 } } }
layer { name: "in3" type: "Input" top: "map" input_param { shape { dim: 4 dim: 1 dim: 8 dim: 9 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "msra" } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "lrn" type: "LRN" bottom: "conv" top: "lrn" }
layer { name: "max" type: "Pooling" bottom: "lrn" top: "max" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "ave" type: "Pooling" bottom: "conv" top: "ave" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "sum" type: "Eltwise" bottom: "max" bottom: "ave" top: "sum" }
layer { name: "cat" type: "Concat" bottom: "sum" bottom: "ave" top: "cat" }
layer { name: "up" type: "Deconvolution" bottom: "cat" top: "up" convolution_param {
  num_output: 8 group: 8 kernel_size: 4 stride: 2 bias_term: false weight_filler { type: "bilinear" } } }
layer { name: "crop" type: "Crop" bottom: "up" bottom: "data" top: "crop" crop_param { offset: 1 } }
layer { name: "spatial" type: "SoftmaxWithLoss" bottom: "crop" bottom: "map" top: "spatial" }
layer { name: "ip" type: "InnerProduct" bottom: "cat" top: "ip" inner_product_param {
  num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" }
layer { name: "hit" type: "Accuracy" bottom: "ip" bottom: "label" top: "hit" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


def every_operator():
    torch.manual_seed(0)
    net = CaffeNet.from_prototxt(EVERY_OPERATOR)
    labels = {"label": torch.arange(4), "map": torch.randint(0, 8, (4, 1, 8, 9))}
    inputs = {"data": torch.randn(4, 3, 8, 9), **labels}
    net.train()(inputs)  # for the statistics of BatchNorm, without which it multiplies by 316
    return net, inputs


# An export takes seconds. Sigmoid, TanH, EuclideanLoss and blobs of two layers are in the second net.
@pytest.mark.parametrize("make", [every_operator, lambda: reference("shared_params")], ids=["every", "shared"])
def test_onnx_keeps_names_and_numbers_for_any_batch(make, tmp_path):
    from onnx import load

    net, inputs = make()
    path = tmp_path / "net.onnx"
    net.train()
    export.export(net, path)
    assert net.training  # as it was
    graph = load(path).graph
    assert [value.name for value in graph.input] == list(net.inputs)
    for value in graph.input:
        batch, *sizes = value.type.tensor_type.shape.dim
        assert batch.dim_param
        assert [size.dim_value for size in sizes] == list(net.shapes[value.name][1:])
    close(run_onnx(path, inputs), values(net, inputs))  # by name too
    fewer = {name: value[:1] for name, value in inputs.items()}
    close(run_onnx(path, fewer), values(net, fewer))


def test_onnx_of_as_many_rows_as_a_blob_selects(tmp_path):
    net = CaffeNet.from_prototxt("""
    layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 4 dim: 2 dim: 5 dim: 6 } } }
    layer { name: "in2" type: "Input" top: "chosen" input_param { shape { dim: 4 } } }
    layer { name: "filter" type: "Filter" bottom: "data" bottom: "chosen" top: "some" }
    layer { name: "windows" type: "Im2col" bottom: "some" top: "windows" convolution_param {
      kernel_size: 3 pad: 1 stride: 2 dilation: 2 } }
    """)
    path = tmp_path / "net.onnx"
    export.export(net, path)
    for chosen in ([0.0, 1, 1, 0], [2.0, 0, 0, 0, 0, 3, 1], [0.0]):
        inputs = {"data": torch.randn(len(chosen), 2, 5, 6), "chosen": torch.tensor(chosen)}
        found, expected = run_onnx(path, inputs), values(net, inputs)
        assert found["windows"].shape == (np.count_nonzero(chosen), 18, 2, 2)
        np.testing.assert_allclose(found["windows"], expected["windows"])


def test_onnx_of_a_net_that_fixes_its_batch_is_refused(tmp_path):
    net = CaffeNet.from_prototxt("""
    layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "fixed" type: "Reshape" bottom: "data" top: "x" reshape_param { shape { dim: 3 dim: 2 } } }
    """)
    with pytest.raises(NetError, match="cannot be written as ONNX with a free batch size"):
        export.export(net, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages_names_the_command(tmp_path, monkeypatch):
    net, _ = reference("lenet_like")
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(MissingDependency, match=r"pip install 'sparknet\[onnx\]'"):
        export.export(net, tmp_path / "net.onnx")


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5", ".prototxt"])
def test_caffes_own_formats(suffix, tmp_path):
    net, inputs = reference("lenet_like")
    path = tmp_path / f"net{suffix}"
    export.export(net, path)
    if suffix == ".prototxt":
        assert NetSpec.from_prototxt(path) == net.description
        return
    again = CaffeNet(net.description, "TEST")
    again.load_weights(path)
    close(values(again, inputs), values(net, inputs))


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".caffemodel", ".caffemodel.h5", ".prototxt"])
def test_others_may_read_what_is_exported(suffix, tmp_path):
    net, _ = reference("lenet_like")
    before = os.umask(0o022)
    try:
        export.export(net, tmp_path / f"net{suffix}")
    finally:
        os.umask(before)
    assert (tmp_path / f"net{suffix}").stat().st_mode & 0o777 == 0o644


def test_a_name_that_tells_no_format_is_refused(tmp_path):
    net, _ = reference("lenet_like")
    with pytest.raises(NetError, match=r"must end in one of \.safetensors, \.onnx"):
        export.export(net, tmp_path / "net.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".prototxt"])
def test_a_place_that_cannot_be_written_is_named(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_onnx", lambda net: b"a model")  # which takes a second to make
    net, _ = reference("lenet_like")
    with pytest.raises(NetError, match=r"none/net.* cannot be written"):
        export.export(net, tmp_path / f"none/net{suffix}")
