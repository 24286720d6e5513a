"""The messages of Caffe's files, generated from `net_format.proto`; `make schema` generates them again.

The protobuf package is `sparknet`, so that these messages live beside those of a pycaffe in the same process.
"""

from sparknet.caffe.schema.net_format_pb2 import (
    TEST,
    TRAIN,
    BlobProto,
    BlobProtoVector,
    BlobShape,
    Datum,
    FillerParameter,
    LayerParameter,
    LooseBlobProto,
    NetParameter,
    NetState,
    NetStateRule,
    ParamSpec,
    Phase,
    SolverParameter,
    SolverState,
    V0LayerParameter,
    V1LayerParameter,
)

__all__ = [
    "TEST",
    "TRAIN",
    "BlobProto",
    "BlobProtoVector",
    "BlobShape",
    "Datum",
    "FillerParameter",
    "LayerParameter",
    "LooseBlobProto",
    "NetParameter",
    "NetState",
    "NetStateRule",
    "ParamSpec",
    "Phase",
    "SolverParameter",
    "SolverState",
    "V0LayerParameter",
    "V1LayerParameter",
]
