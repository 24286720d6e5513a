"""Caffe's layers as torch modules, found by the type that a net file names."""

from sparknet.nets.layers.activations import (
    BNLL,
    ELU,
    AbsVal,
    Clip,
    Dropout,
    Exp,
    Log,
    Power,
    PReLU,
    ReLU,
    Sigmoid,
    Swish,
    TanH,
    Threshold,
)
from sparknet.nets.layers.combine import Concat, Eltwise, Slice, Split
from sparknet.nets.layers.convolution import Convolution, Deconvolution
from sparknet.nets.layers.inputs import INPUT_LAYERS, InputBlob, Transform, input_blobs
from sparknet.nets.layers.layer import Layer, Shape
from sparknet.nets.layers.linear import Embed, InnerProduct
from sparknet.nets.layers.losses import (
    ContrastiveLoss,
    EuclideanLoss,
    HingeLoss,
    MultinomialLogisticLoss,
    SigmoidCrossEntropyLoss,
)
from sparknet.nets.layers.metrics import Accuracy, ArgMax
from sparknet.nets.layers.normalise import LRN, MVN, BatchNorm, Bias, Scale
from sparknet.nets.layers.pooling import SPP, Pooling
from sparknet.nets.layers.shape import BatchReindex, Crop, Flatten, Reduction, Reshape, Silence, Tile
from sparknet.nets.layers.softmax import InfogainLoss, Softmax, SoftmaxWithLoss
from sparknet.nets.layers.sources import DummyData, Parameter

__all__ = ["INPUT_LAYERS", "LAYERS", "InputBlob", "Layer", "Shape", "Transform", "input_blobs"]

LAYERS: dict[str, type[Layer]] = {
    # activations
    "ReLU": ReLU,
    "PReLU": PReLU,
    "ELU": ELU,
    "Sigmoid": Sigmoid,
    "TanH": TanH,
    "AbsVal": AbsVal,
    "BNLL": BNLL,
    "Power": Power,
    "Exp": Exp,
    "Log": Log,
    "Threshold": Threshold,
    "Clip": Clip,
    "Swish": Swish,
    "Dropout": Dropout,
    # combine
    "Concat": Concat,
    "Slice": Slice,
    "Split": Split,
    "Eltwise": Eltwise,
    # convolution
    "Convolution": Convolution,
    "Deconvolution": Deconvolution,
    # linear
    "InnerProduct": InnerProduct,
    "Embed": Embed,
    # losses
    "EuclideanLoss": EuclideanLoss,
    "SigmoidCrossEntropyLoss": SigmoidCrossEntropyLoss,
    "HingeLoss": HingeLoss,
    "ContrastiveLoss": ContrastiveLoss,
    "MultinomialLogisticLoss": MultinomialLogisticLoss,
    # metrics
    "Accuracy": Accuracy,
    "ArgMax": ArgMax,
    # normalise
    "LRN": LRN,
    "BatchNorm": BatchNorm,
    "Scale": Scale,
    "Bias": Bias,
    "MVN": MVN,
    # pooling
    "Pooling": Pooling,
    "SPP": SPP,
    # shape
    "Flatten": Flatten,
    "Reshape": Reshape,
    "Crop": Crop,
    "Tile": Tile,
    "Reduction": Reduction,
    "Silence": Silence,
    "BatchReindex": BatchReindex,
    # softmax
    "Softmax": Softmax,
    "SoftmaxWithLoss": SoftmaxWithLoss,
    "InfogainLoss": InfogainLoss,
    # sources
    "DummyData": DummyData,
    "Parameter": Parameter,
}
"""Layer class by Caffe's type name."""
