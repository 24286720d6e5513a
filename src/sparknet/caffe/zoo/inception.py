"""GoogLeNet, the first Inception."""

from typing import Any

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.dsl import (
    AccuracyLayer,
    ConcatLayer,
    ConvolutionLayer,
    DropoutLayer,
    InnerProductLayer,
    LRNLayer,
    NetParam,
    Pooling,
    PoolingLayer,
    ReLULayer,
    Rule,
    SoftmaxLayer,
    SoftmaxWithLoss,
    constant,
    xavier,
)
from sparknet.caffe.schema import LayerParameter
from sparknet.caffe.zoo.ends import LABELLED, LABELLED_TEST, PLAIN_BIAS, check_image, inputs

__all__ = ["googlenet"]

# 1x1, 3x3 reduced and 3x3, 5x5 reduced and 5x5, 1x1 after pooling (arXiv 1409.4842, table 1)
_MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
_LEAST = 47  # below it the pooling of the auxiliary heads has no window
_LEARNED: dict[str, Any] = {"weight_filler": xavier(), "bias_filler": constant(0.2), "params": PLAIN_BIAS}
_SCORES: dict[str, Any] = {"weight_filler": xavier(), "bias_filler": constant(0), "params": PLAIN_BIAS}


def googlenet(
    *, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, batch_size: int = 32
) -> NetSpec:
    """GoogLeNet (models/bvlc_googlenet/train_val.prototxt); 13,378,280 parameters, 6,998,552 in stage deploy.

    The two auxiliary heads, whose losses count 0.3 each, are left out in stage deploy. The last pooling is 7x7 in
    the published file, which is the whole image there; it is global here, so that images of other sizes fit.

    Args:
        input_shape: (channels, height, width), at least 47x47.
        classes: width of the last layers.
        batch_size: rows of an input.

    Raises:
        NetError: the input is not three-dimensional or too small.
    """
    check_image("googlenet", input_shape, least=_LEAST)
    layers = [*inputs(input_shape, batch_size), *_stem()]
    bottom = "pool2/3x3_s2"
    for module in _MODULES:
        if module in ("4a", "5a"):
            pool = f"pool{int(module[0]) - 1}/3x3_s2"
            layers.append(PoolingLayer(pool, [bottom], Pooling.Max, kernel=3, stride=2))
            bottom = pool
        layers += _inception(module, bottom)
        bottom = f"inception_{module}/output"
        # Where the auxiliary heads branch off (figure 3 of the paper).
        if module in ("4a", "4d"):
            layers += _auxiliary(1 if module == "4a" else 2, bottom, classes)
    return NetParam(
        "GoogleNet",
        *layers,
        PoolingLayer("pool5/7x7_s1", [bottom], Pooling.Ave, global_pooling=True),
        DropoutLayer("pool5/drop_7x7_s1", ["pool5/7x7_s1"], ratio=0.4, in_place=True),
        InnerProductLayer("loss3/classifier", ["pool5/7x7_s1"], num_output=classes, **_SCORES),
        SoftmaxWithLoss("loss3/loss3", ["loss3/classifier", "label"], loss_weight=1, include=LABELLED),
        *_accuracies(3, "loss3/classifier"),
        SoftmaxLayer("prob", ["loss3/classifier"], include=Rule(stages=["deploy"])),
    )


def _stem() -> list[LayerParameter]:
    return [
        *_convolution("conv1/7x7_s2", "data", 7, 64, pad=3, stride=2),
        PoolingLayer("pool1/3x3_s2", ["conv1/7x7_s2"], Pooling.Max, kernel=3, stride=2),
        LRNLayer("pool1/norm1", ["pool1/3x3_s2"], local_size=5, alpha=1e-4, beta=0.75),
        *_convolution("conv2/3x3_reduce", "pool1/norm1", 1, 64),
        *_convolution("conv2/3x3", "conv2/3x3_reduce", 3, 192, pad=1),
        LRNLayer("conv2/norm2", ["conv2/3x3"], local_size=5, alpha=1e-4, beta=0.75),
        PoolingLayer("pool2/3x3_s2", ["conv2/norm2"], Pooling.Max, kernel=3, stride=2),
    ]


def _inception(module: str, bottom: str) -> list[LayerParameter]:
    """Four branches, joined as channels."""
    prefix = f"inception_{module}"
    one, three_reduced, three, five_reduced, five, projected = _MODULES[module]
    branches = [f"{prefix}/{branch}" for branch in ("1x1", "3x3", "5x5", "pool_proj")]
    return [
        *_convolution(f"{prefix}/1x1", bottom, 1, one),
        *_convolution(f"{prefix}/3x3_reduce", bottom, 1, three_reduced),
        *_convolution(f"{prefix}/3x3", f"{prefix}/3x3_reduce", 3, three, pad=1),
        *_convolution(f"{prefix}/5x5_reduce", bottom, 1, five_reduced),
        *_convolution(f"{prefix}/5x5", f"{prefix}/5x5_reduce", 5, five, pad=2),
        PoolingLayer(f"{prefix}/pool", [bottom], Pooling.Max, kernel=3, stride=1, pad=1),
        *_convolution(f"{prefix}/pool_proj", f"{prefix}/pool", 1, projected),
        ConcatLayer(f"{prefix}/output", branches),
    ]


def _auxiliary(number: int, bottom: str, classes: int) -> list[LayerParameter]:
    """A classifier halfway up, which brings the gradient to the lower layers."""
    head = f"loss{number}"
    scores = f"{head}/classifier"
    # Without labels there is no loss, and a head without one would only cost time.
    only: dict[str, Any] = {"include": LABELLED}
    return [
        PoolingLayer(f"{head}/ave_pool", [bottom], Pooling.Ave, kernel=5, stride=3, **only),
        *_convolution(f"{head}/conv", f"{head}/ave_pool", 1, 128, **only),
        InnerProductLayer(f"{head}/fc", [f"{head}/conv"], num_output=1024, **_LEARNED, **only),
        ReLULayer(f"{head}/relu_fc", [f"{head}/fc"], in_place=True, **only),
        DropoutLayer(f"{head}/drop_fc", [f"{head}/fc"], ratio=0.7, in_place=True, **only),
        InnerProductLayer(scores, [f"{head}/fc"], num_output=classes, **_SCORES, **only),
        # the second head's blob is called loss2/loss1 in the published file, and so in everyone's logs
        SoftmaxWithLoss(f"{head}/loss", [scores, "label"], tops=[f"{head}/loss1"], loss_weight=0.3, **only),
        *_accuracies(number, scores),
    ]


def _accuracies(number: int, scores: str) -> list[LayerParameter]:
    bottoms = [scores, "label"]
    return [
        AccuracyLayer(f"loss{number}/top-1", bottoms, include=LABELLED_TEST),
        AccuracyLayer(f"loss{number}/top-5", bottoms, top_k=5, include=LABELLED_TEST),
    ]


def _convolution(name: str, bottom: str, kernel: int, num_output: int, **options: Any) -> list[LayerParameter]:
    place, _, window = name.rpartition("/")
    rule = {"include": options["include"]} if "include" in options else {}
    relu = window.removesuffix("_s2")  # conv1/7x7_s2 is followed by conv1/relu_7x7
    return [
        ConvolutionLayer(name, [bottom], kernel, num_output, **options, **_LEARNED),
        ReLULayer(f"{place}/relu_{relu}", [name], in_place=True, **rule),
    ]
