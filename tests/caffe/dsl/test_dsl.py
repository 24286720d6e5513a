"""Nets written as Python: what the layer functions write, and what they refuse."""

import inspect
from typing import Any

import pytest

from sparknet.caffe import CaffeNet, NetSpec, dsl
from sparknet.caffe.dsl import (
    AccuracyLayer,
    BatchNormLayer,
    ConvolutionLayer,
    DeconvolutionLayer,
    DropoutLayer,
    EltwiseLayer,
    InnerProductLayer,
    InputLayer,
    Layer,
    LRNLayer,
    NetParam,
    Param,
    Pooling,
    PoolingLayer,
    RDDLayer,
    ReLULayer,
    ReshapeLayer,
    Rule,
    ScaleLayer,
    SliceLayer,
    SoftmaxWithLoss,
    constant,
    gaussian,
    msra,
    positive_unitball,
    uniform,
    xavier,
)
from sparknet.caffe.schema import LayerParameter
from sparknet.errors import NetError

HEAD = ("  name:", "  type:", "  bottom:", "  top:")


def lenet_of_the_original() -> NetSpec:
    """The example of the original SparkNet's README, word for word but for Python's spelling."""
    return NetParam(
        "LeNet",
        RDDLayer("data", shape=[64, 1, 28, 28]),
        RDDLayer("label", shape=[64, 1]),
        ConvolutionLayer("conv1", ["data"], kernel=(5, 5), num_output=20),
        PoolingLayer("pool1", ["conv1"], pooling=Pooling.Max, kernel=(2, 2), stride=(2, 2)),
        ConvolutionLayer("conv2", ["pool1"], kernel=(5, 5), num_output=50),
        PoolingLayer("pool2", ["conv2"], pooling=Pooling.Max, kernel=(2, 2), stride=(2, 2)),
        InnerProductLayer("ip1", ["pool2"], num_output=500),
        ReLULayer("relu1", ["ip1"]),
        InnerProductLayer("ip2", ["relu1"], num_output=10),
        SoftmaxWithLoss("loss", ["ip2", "label"]),
    )


def text(layer: LayerParameter) -> str:
    """The layer as Caffe's text, on one line, without name and type."""
    written = NetParam("n", layer).to_prototxt().split("{", 1)[1].rsplit("}", 1)[0]
    own = [line for line in written.splitlines() if not line.startswith(HEAD)]
    return " ".join(line.strip() for line in own if line)


def test_the_originals_example_builds_and_survives_the_text():
    net = lenet_of_the_original()
    assert NetSpec.from_prototxt(net.to_prototxt()) == net
    built = CaffeNet(net, "TRAIN")
    assert sum(parameter.numel() for parameter in built.parameters()) == 431_080
    assert built.outputs == ("loss",)
    assert list(built.inputs) == ["data", "label"]


def test_a_layer_is_written_as_a_person_would():
    layer = ConvolutionLayer(
        "conv1",
        ["data"],
        kernel=(5, 5),
        num_output=20,
        stride=1,
        weight_filler=xavier(),
        bias_filler=constant(),
        params=[Param(lr_mult=1), Param(lr_mult=2, decay_mult=0)],
    )
    expected = """
name: "net"
layer {
  name: "conv1"
  type: "Convolution"
  bottom: "data"
  top: "conv1"
  param {
    lr_mult: 1
  }
  param {
    lr_mult: 2
    decay_mult: 0
  }
  convolution_param {
    num_output: 20
    kernel_size: 5
    weight_filler {
      type: "xavier"
    }
    bias_filler {
      type: "constant"
    }
  }
}
"""
    assert NetParam("net", layer).to_prototxt() == expected.lstrip()


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (ReLULayer("x", ["a"]), ""),
        (ReLULayer("x", ["a"], negative_slope=0.1), "relu_param { negative_slope: 0.1 }"),
        (DropoutLayer("x", ["a"]), ""),
        (DropoutLayer("x", ["a"], 0.7), "dropout_param { dropout_ratio: 0.7 }"),
        (LRNLayer("x", ["a"], local_size=5, alpha=0.25, beta=0.75), "lrn_param { alpha: 0.25 }"),
        (BatchNormLayer("x", ["a"], moving_average_fraction=0.999, eps=1e-5), ""),
        (BatchNormLayer("x", ["a"], use_global_stats=False), "batch_norm_param { use_global_stats: false }"),
        (ScaleLayer("x", ["a"], bias=True), "scale_param { bias_term: true }"),
        (EltwiseLayer("x", ["a", "b"], "SUM"), ""),
        (EltwiseLayer("x", ["a", "b"], "MAX"), "eltwise_param { operation: MAX }"),
        (EltwiseLayer("x", ["a", "b"], coeff=[1, -1]), "eltwise_param { coeff: 1 coeff: -1 }"),
        (SoftmaxWithLoss("x", ["a", "b"], ignore_label=0), "loss_param { ignore_label: 0 }"),
        (SoftmaxWithLoss("x", ["a", "b"], normalization="NONE"), "loss_param { normalization: NONE }"),
        (SoftmaxWithLoss("x", ["a", "b"], loss_weight=0.3), "loss_weight: 0.3"),
        (
            AccuracyLayer("x", ["a", "b"], top_k=5, phase="TEST"),
            "include { phase: TEST } accuracy_param { top_k: 5 }",
        ),
        (InputLayer("x", [2, 3]), "input_param { shape { dim: 2 dim: 3 } }"),
        (ReshapeLayer("x", ["a"], [0, -1]), "reshape_param { shape { dim: 0 dim: -1 } }"),
        (PoolingLayer("x", ["a"], kernel=2), "pooling_param { pool: MAX kernel_size: 2 }"),
        (
            PoolingLayer("x", ["a"], Pooling.Ave, (3, 2), (2, 1), pad=1, round_mode="FLOOR"),
            "pooling_param { pool: AVE pad: 1 kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 1 round_mode: FLOOR }",
        ),
        (
            DeconvolutionLayer("x", ["a"], (3, 2), 4, group=2, bias=False, dilation=2, pad=(0, 1)),
            "convolution_param { num_output: 4 bias_term: false group: 2 pad_w: 1 kernel_h: 3 kernel_w: 2 "
            "dilation: 2 }",
        ),
        (
            ReLULayer("x", ["a"], include=[Rule("TEST", stages=["a"], not_stages=["b"]), Rule(min_level=1)]),
            'include { phase: TEST stage: "a" not_stage: "b" } include { min_level: 1 }',
        ),
        (ReLULayer("x", ["a"], exclude=Rule(max_level=2)), "exclude { max_level: 2 }"),
        (ReLULayer("x", ["a"], propagate_down=[False]), "propagate_down: false"),
        (
            InnerProductLayer("x", ["a"], 2, axis=2, transpose=True, params=[Param(name="w")]),
            'param { name: "w" } inner_product_param { num_output: 2 axis: 2 transpose: true }',
        ),
    ],
)
def test_only_what_differs_from_caffes_defaults_is_written(layer: LayerParameter, expected: str):
    assert text(layer) == expected


@pytest.mark.parametrize(
    ("filler", "expected"),
    [
        (constant(0.1), 'type: "constant" value: 0.1'),
        (uniform(-1, 1), 'type: "uniform" min: -1'),
        (gaussian(std=0.01), 'type: "gaussian" std: 0.01'),
        (gaussian(std=0.5, mean=1, sparse=15), 'type: "gaussian" mean: 1 std: 0.5 sparse: 15'),
        (xavier("AVERAGE"), 'type: "xavier" variance_norm: AVERAGE'),
        (msra(), 'type: "msra"'),
        (positive_unitball(), 'type: "positive_unitball"'),
    ],
)
def test_fillers(filler: Any, expected: str):
    written = text(InnerProductLayer("x", ["a"], 1, weight_filler=filler))
    assert written == f"inner_product_param {{ num_output: 1 weight_filler {{ {expected} }} }}"


def test_blobs_are_named_after_their_layer_or_as_told():
    assert ReLULayer("x", "a").top == ["x"]
    assert ReLULayer("x", ["a"], tops=["b"]).top == ["b"]
    assert ReLULayer("x", ["a"], in_place=True).top == ["a"]
    assert SliceLayer("x", ["a"], tops=("b", "c"), slice_point=[2]).top == ["b", "c"]
    assert Layer("Silence", "x", ["a"], tops=()).top == []
    assert Layer("Power", "x", ["a"], ["b"]).top == ["b"]


def test_any_type_and_field_is_reached():
    layer = Layer(
        "Data",
        "cifar",
        tops=["data", "label"],
        source="train_lmdb",
        backend="LMDB",
        batch_size=100,
        crop_size=28,
        mirror=True,
        phase="TRAIN",
    )
    # the data layer's own crop_size is legacy: Caffe would not heed it
    assert text(layer) == (
        "include { phase: TRAIN } transform_param { mirror: true crop_size: 28 } "
        'data_param { source: "train_lmdb" batch_size: 100 backend: LMDB }'
    )
    assert (
        text(Layer("Pooling", "x", ["a"], pool="ave", kernel_size=3))
        == "pooling_param { pool: AVE kernel_size: 3 }"
    )
    assert text(Layer("SoftmaxWithLoss", "x", ["a", "b"], axis=2, loss_param={"ignore_label": 255})) == (
        "loss_param { ignore_label: 255 } softmax_param { axis: 2 }"
    )
    filler = {"type": "gaussian", "std": 0.1}
    assert text(Layer("LSTM", "x", ["a", "b"], num_output=3, weight_filler=filler)) == (
        'recurrent_param { num_output: 3 weight_filler { type: "gaussian" std: 0.1 } }'
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: Layer("Pooling", "p", "a", kernal_size=3),
            r"'p' \(Pooling\): it has no field 'kernal_size': did you",
        ),
        (lambda: Layer("Pooling", "p", "a", kernal_size=None), "did you mean kernel_size"),
        (lambda: Layer("Pooling", "p", "a", pool="AVG"), "pool is 'AVG'; it does not fit: did you mean AVE"),
        (lambda: PoolingLayer("p", "a", "AVG", 2), "pool is 'AVG'; it does not fit: did you mean AVE"),  # pyright: ignore
        (lambda: msra("FANIN"), "msra: variance_norm is 'FANIN'; it must be one of FAN_IN"),  # pyright: ignore
        (lambda: Layer("Pooling", "p", "a", top=["b"]), "no field 'top': did you mean tops"),
        (lambda: Layer("Pool", "p", "a", zzz=1), "no field 'zzz': it has none of its own"),
        (lambda: Layer("Data", "d", transform_param={"mirrr": True}), "transform_param: .*did you mean mirror"),
        (lambda: ReLULayer("r", "a", engine="CAFFE"), "engine is no argument here; Layer"),  # pyright: ignore
        (lambda: ReLULayer("r", "a", in_plase=True), "did you mean in_place"),  # pyright: ignore
        (lambda: InnerProductLayer("i", "a", 5.5), "num_output is 5.5; it does not fit"),  # pyright: ignore
        (lambda: InnerProductLayer("i", "a", -5), "num_output is -5; it does not fit"),
        (lambda: InnerProductLayer("i", "a", True), "num_output is True; it does not fit"),
        (lambda: InnerProductLayer("i", "a", 5, bias=1), "bias_term is 1; .* give True or False"),  # pyright: ignore
        (lambda: ConvolutionLayer("c", "a", (1, 2, 3), 5), "kernel is .1, 2, 3.; it must be one number or"),
        (lambda: ReLULayer("r", 5), "bottoms: 5 is no name of a blob"),  # pyright: ignore
        (lambda: ReLULayer("r", ["a", ""]), "bottoms: '' is no name of a blob"),
        (lambda: ReLULayer("r", ["a", "b"], in_place=True), "it has 2; give one bottom and no tops"),
        (lambda: ReLULayer("r", ["a"], in_place=True, tops=["b"]), "it has 1 and tops of its own"),
        (lambda: ReLULayer("r", "a", phase="train"), "phase is 'train'; it must be TRAIN or TEST"),  # pyright: ignore
        (lambda: ReLULayer("r", "a", include=["b"]), r"include is \['b'\]; it does not fit"),  # pyright: ignore
        (lambda: NetParam("n", [ReLULayer("r", "a")]), "argument 1 is a list; it must be a layer"),  # pyright: ignore
        (lambda: NetParam("n", ReLULayer("r", "a"), ReLULayer("r", "b")), "2 layers are named 'r'"),
    ],
)
def test_wrong_use_says_what_to_do(wrong, message):
    with pytest.raises(NetError, match=message):
        wrong()


def test_layers_of_different_states_may_share_a_name():
    train, test = (InputLayer("data", [batch, 3], phase=phase) for batch, phase in ((8, "TRAIN"), (2, "TEST")))
    net = NetParam("n", train, test)
    assert CaffeNet(net, "TRAIN").shapes["data"] == (8, 3)
    assert CaffeNet(net, "TEST").shapes["data"] == (2, 3)
    with pytest.raises(NetError, match="2 layers are named 'x'"):
        NetParam("n", ReLULayer("x", "a", include=Rule(stages=["s"])), ReLULayer("x", "a", phase="TEST"))


def test_errors_of_the_builder_name_net_and_layer():
    net = NetParam("Small", InputLayer("data", [1, 3]), InnerProductLayer("ip", ["daat"], 2))
    with pytest.raises(NetError, match=r"net 'Small': layer 'ip' \(InnerProduct\): .*did you mean 'data'"):
        CaffeNet(net)


def test_every_layer_function_has_a_type_that_can_be_built():
    """Names and types belong together: ReLULayer is ReLU; a loss has its type's name."""
    from sparknet.caffe.layers import INPUT_LAYERS, LAYERS

    functions = {
        name: value for name, value in vars(dsl).items() if inspect.isfunction(value) and name[0].isupper()
    }
    for name in functions.keys() - {"Layer", "NetParam", "Param", "RDDLayer", "Rule"}:
        kind = name.removesuffix("Layer")
        assert kind in LAYERS or kind in INPUT_LAYERS, name
