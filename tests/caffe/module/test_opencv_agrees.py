"""A second opinion: OpenCV's importer reads the nets and weights that we write, and computes the same.

OpenCV has its own parser of Caffe's files and its own layers. It runs the TEST phase and takes no losses, so each
net is cut behind the blobs that are compared.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from places import REFERENCE
from sparknet.caffe import CaffeNet, NetSpec, export, zoo
from sparknet.caffe.schema import NetParameter

NETS = REFERENCE / "nets"
NOT_FOR_OPENCV = ("Accuracy", "ArgMax", "Silence")

REFERENCES = {
    "lenet_like": "f2",
    "cifar_quick_like": "ip2",
    "inception_mini": "classifier",
    "residual_bn_scale": "fc",
    "legacy_v1": "f2",
    "segmentation_like": "fit",
}


def deployed(spec: NetSpec, goal: str, *stages: str) -> NetSpec:
    """The part of the TEST net that `goal` needs, which is what a deploy file holds."""
    state = spec.select("TEST", stages=stages).parameters
    needed, kept = {goal}, []
    for layer in reversed(state.layer):
        if needed & set(layer.top) and not layer.type.endswith("Loss") and layer.type not in NOT_FOR_OPENCV:
            kept.append(layer)
            needed |= set(layer.bottom)
    net = NetParameter(name=state.name)
    net.layer.extend(reversed(kept))
    for layer in net.layer:
        layer.ClearField("include")
        layer.ClearField("exclude")
        if layer.type == "Input":
            tops = [top in needed for top in layer.top]
            shapes = [shape for shape, used in zip(layer.input_param.shape, tops, strict=True) if used]
            layer.top[:] = [top for top, used in zip(layer.top, tops, strict=True) if used]
            del layer.input_param.shape[:]
            layer.input_param.shape.extend(shapes)
    return NetSpec.from_message(net)


def by_opencv(net: CaffeNet, inputs: dict[str, np.ndarray], goal: str, folder: Path) -> np.ndarray:
    export.export(net, folder / "net.prototxt")
    net.save_weights(folder / "net.caffemodel")
    read = cv2.dnn.readNetFromCaffe(str(folder / "net.prototxt"), str(folder / "net.caffemodel"))
    for name, value in inputs.items():
        read.setInput(value, name)
    return read.forward(goal)


def agree(net: CaffeNet, inputs: dict[str, np.ndarray], goal: str, folder: Path) -> None:
    with torch.no_grad():
        ours = net.forward_blobs({name: torch.from_numpy(value) for name, value in inputs.items()}, [goal])[goal]
    theirs = by_opencv(net, inputs, goal, folder).reshape(ours.shape)
    assert np.abs(ours.numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize(("name", "goal"), REFERENCES.items())
def test_reference_nets(name, goal, tmp_path):
    folder = NETS / name
    net = CaffeNet(deployed(NetSpec.from_prototxt(folder / "net.prototxt"), goal), "TEST")
    net.load_weights(folder / "weights.caffemodel")
    inputs = np.load(folder / "inputs.npz")
    agree(net, {blob: inputs[blob] for blob in net.inputs}, goal, tmp_path)


# Layers that the reference nets do not put together so; weights are random. LRN's k is left out: OpenCV does not
# read it. Ours is held against Caffe in layers/lrn_across_k.
NETS_OF_OURS = {
    "upscaled": """
name: "upscaled"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 11 } } }
layer { name: "down" type: "Convolution" bottom: "data" top: "down" convolution_param {
  num_output: 6 kernel_h: 3 kernel_w: 2 pad: 1 stride: 2 group: 3 weight_filler { type: "xavier" } } }
layer { name: "slope" type: "PReLU" bottom: "down" top: "down" prelu_param { filler { value: 0.3 } } }
layer { name: "up" type: "Deconvolution" bottom: "down" top: "up" convolution_param {
  num_output: 4 kernel_size: 4 pad: 1 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "elu" type: "ELU" bottom: "up" top: "up" elu_param { alpha: 0.7 } }
layer { name: "goal" type: "Softmax" bottom: "up" top: "goal" }
""",
    "sliced": """
name: "sliced"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 6 dim: 8 dim: 8 } } }
layer { name: "slice" type: "Slice" bottom: "data" top: "a" top: "b" slice_param { slice_point: 2 } }
layer { name: "conv" type: "Convolution" bottom: "a" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 pad: 2 dilation: 2 weight_filler { type: "msra" } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true
  filler { type: "uniform" min: 0.5 max: 2 } } }
layer { name: "sum" type: "Eltwise" bottom: "conv" bottom: "b" top: "sum" eltwise_param { coeff: 0.5 coeff: -2 } }
layer { name: "sigmoid" type: "Sigmoid" bottom: "sum" top: "sum" }
layer { name: "max" type: "Eltwise" bottom: "sum" bottom: "b" top: "max" eltwise_param { operation: MAX } }
layer { name: "cat" type: "Concat" bottom: "max" bottom: "a" top: "cat" }
layer { name: "pool" type: "Pooling" bottom: "cat" top: "pool" pooling_param {
  pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "within" type: "LRN" bottom: "pool" top: "within" lrn_param { local_size: 3 alpha: 0.5 } }
layer { name: "drop" type: "Dropout" bottom: "within" top: "within" }
layer { name: "flat" type: "Flatten" bottom: "within" top: "flat" }
layer { name: "goal" type: "InnerProduct" bottom: "flat" top: "goal" inner_product_param {
  num_output: 5 weight_filler { type: "gaussian" std: 0.1 } bias_filler { value: 0.2 } } }
""",
    "pooled": """
name: "pooled"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 14 dim: 10 } } }
layer { name: "max" type: "Pooling" bottom: "data" top: "max" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "ave" type: "Pooling" bottom: "data" top: "ave" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "both" type: "Concat" bottom: "max" bottom: "ave" top: "both" }
layer { name: "lrn" type: "LRN" bottom: "both" top: "lrn" lrn_param { local_size: 5 alpha: 0.3 beta: 0.6 } }
layer { name: "tanh" type: "TanH" bottom: "lrn" top: "tanh" }
layer { name: "power" type: "Power" bottom: "tanh" top: "power" power_param { power: 2 scale: 0.5 shift: 1 } }
layer { name: "abs" type: "AbsVal" bottom: "power" top: "abs" }
layer { name: "conv" type: "Convolution" bottom: "abs" top: "conv" convolution_param {
  num_output: 7 kernel_size: 1 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "global" type: "Pooling" bottom: "conv" top: "global" pooling_param {
  pool: AVE global_pooling: true } }
layer { name: "goal" type: "Reshape" bottom: "global" top: "goal" reshape_param { shape { dim: 0 dim: -1 } } }
""",
}


@pytest.mark.parametrize("name", NETS_OF_OURS)
def test_nets_of_ours(name, tmp_path):
    torch.manual_seed(5)
    net = CaffeNet.from_prototxt(NETS_OF_OURS[name])
    if name == "sliced":
        mean, variance, factor = net.weights()["norm"]
        net.set_weights({"norm": [torch.randn_like(mean), torch.rand_like(variance) + 1, factor + 2]})
    value = np.random.default_rng(0).standard_normal(net.shapes["data"], np.float32)
    agree(net, {"data": value}, "goal", tmp_path)


SCORES = {
    "lenet": ("ip2", 28),
    "cifar10_quick": ("ip2", 32),
    "cifar10_full": ("ip1", 32),
    "squeezenet": ("pool10", 99),
    "googlenet": ("loss3/classifier", 224),
    "resnet18": ("fc1000", 64),
}


@pytest.mark.parametrize("name", SCORES)
def test_the_zoo(name, tmp_path):
    goal, side = SCORES[name]
    shape = (1 if name == "lenet" else 3, side, side)
    torch.manual_seed(5)
    spec = deployed(getattr(zoo, name)(input_shape=shape, batch_size=2), goal, "deploy")
    net = CaffeNet(spec, "TEST")
    for step in net.steps:
        if step.description.type == "BatchNorm":  # as it is made it divides by nothing
            mean, variance, _ = step.layer.blobs()
            net.set_weights({step.name: [mean, torch.rand_like(variance) + 0.5, torch.ones(1)]})
    value = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
    agree(net, {"data": value}, goal, tmp_path)
