"""Caffe's layers as torch modules, found by the type that a net file names."""

from sparknet.caffe.layers.activations import (
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
from sparknet.caffe.layers.combine import Concat, Eltwise, Slice, Split
from sparknet.caffe.layers.convolution import Convolution, Deconvolution, Im2col
from sparknet.caffe.layers.inputs import INPUT_LAYERS, InputBlob, Transform, input_blobs
from sparknet.caffe.layers.layer import Layer, Legal, Shape
from sparknet.caffe.layers.linear import Embed, InnerProduct
from sparknet.caffe.layers.losses import (
    ContrastiveLoss,
    EuclideanLoss,
    HingeLoss,
    MultinomialLogisticLoss,
    SigmoidCrossEntropyLoss,
)
from sparknet.caffe.layers.metrics import Accuracy, ArgMax
from sparknet.caffe.layers.normalise import LRN, MVN, BatchNorm, Bias, Scale
from sparknet.caffe.layers.outputs import HDF5Output
from sparknet.caffe.layers.pooling import SPP, WindowPooling
from sparknet.caffe.layers.python import Python
from sparknet.caffe.layers.recurrent import LSTM, RNN
from sparknet.caffe.layers.shape import BatchReindex, Crop, Filter, Flatten, Reduction, Reshape, Silence, Tile
from sparknet.caffe.layers.softmax import InfogainLoss, Softmax, SoftmaxWithLoss
from sparknet.caffe.layers.sources import DummyData, Parameter

__all__ = ["INPUT_LAYERS", "LAYERS", "InputBlob", "Layer", "Legal", "Shape", "Transform", "input_blobs"]

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
    "Im2col": Im2col,
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
    # outputs
    "HDF5Output": HDF5Output,
    # pooling
    "Pooling": WindowPooling,
    "SPP": SPP,
    # recurrent
    "LSTM": LSTM,
    "RNN": RNN,
    # the user's own
    "Python": Python,
    # shape
    "Flatten": Flatten,
    "Reshape": Reshape,
    "Crop": Crop,
    "Tile": Tile,
    "Reduction": Reduction,
    "Silence": Silence,
    "BatchReindex": BatchReindex,
    "Filter": Filter,
    # softmax
    "Softmax": Softmax,
    "SoftmaxWithLoss": SoftmaxWithLoss,
    "InfogainLoss": InfogainLoss,
    # sources
    "DummyData": DummyData,
    "Parameter": Parameter,
}
"""Layer class by Caffe's type name."""
