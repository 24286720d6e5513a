"""Nets written as Python: one function per common layer, named and spelt as in the original SparkNet.

    net = NetParam(
        "LeNet",
        RDDLayer("data", shape=[64, 1, 28, 28]),
        RDDLayer("label", shape=[64]),
        ConvolutionLayer("conv1", ["data"], kernel=(5, 5), num_output=20),
        PoolingLayer("pool1", ["conv1"], pooling=Pooling.Max, kernel=(2, 2), stride=(2, 2)),
        InnerProductLayer("ip1", ["pool1"], num_output=10),
        SoftmaxWithLoss("loss", ["ip1", "label"]),
    )

A function returns a `LayerParameter`, Caffe's message; `NetParam` puts them together as a `NetSpec`, whose
`to_prototxt()` Caffe reads. A blob is named after the layer that makes it, unless `tops` or `in_place` differ.
Values that are Caffe's defaults are not written. What every function takes besides its own is in `Options`; types
and fields without a function of their own are reached through `Layer`.
"""

# A type has a function of its own where people reach for it: the most frequent ones of 261 public nets (Convolution
# in 95 % of them, Flatten in 5 %, then Slice, Sigmoid, Deconvolution, TanH) and the losses of regression and of
# several labels. `Layer` holds the fields of all others against the schema; a wrapper would add only a docstring.

from sparknet.caffe.dsl.ends import (
    AccuracyLayer,
    EuclideanLoss,
    InputLayer,
    RDDLayer,
    SigmoidCrossEntropyLoss,
    SoftmaxLayer,
    SoftmaxWithLoss,
)
from sparknet.caffe.dsl.learned import (
    BatchNormLayer,
    ConvolutionLayer,
    DeconvolutionLayer,
    InnerProductLayer,
    ScaleLayer,
)
from sparknet.caffe.dsl.message import Layer, NetParam, Options
from sparknet.caffe.dsl.parts import (
    Param,
    Rule,
    bilinear,
    constant,
    gaussian,
    msra,
    positive_unitball,
    uniform,
    xavier,
)
from sparknet.caffe.dsl.plain import (
    ConcatLayer,
    DropoutLayer,
    EltwiseLayer,
    FlattenLayer,
    LRNLayer,
    Pooling,
    PoolingLayer,
    ReLULayer,
    ReshapeLayer,
    SigmoidLayer,
    SliceLayer,
    TanHLayer,
)

__all__ = [
    "AccuracyLayer",
    "BatchNormLayer",
    "ConcatLayer",
    "ConvolutionLayer",
    "DeconvolutionLayer",
    "DropoutLayer",
    "EltwiseLayer",
    "EuclideanLoss",
    "FlattenLayer",
    "InnerProductLayer",
    "InputLayer",
    "LRNLayer",
    "Layer",
    "NetParam",
    "Options",
    "Param",
    "Pooling",
    "PoolingLayer",
    "RDDLayer",
    "ReLULayer",
    "ReshapeLayer",
    "Rule",
    "ScaleLayer",
    "SigmoidCrossEntropyLoss",
    "SigmoidLayer",
    "SliceLayer",
    "SoftmaxLayer",
    "SoftmaxWithLoss",
    "TanHLayer",
    "bilinear",
    "constant",
    "gaussian",
    "msra",
    "positive_unitball",
    "uniform",
    "xavier",
]
