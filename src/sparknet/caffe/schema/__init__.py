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
    "PACKED",
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

# A `repeated float` of Caffe's file is bytes here. The wire form is the same, and protobuf takes over a blob as one
# piece instead of number by number: CaffeNet's 61 million in 1.35 s where it took 18.7 s.
PACKED = {
    "BlobProto.data": "f",
    "BlobProto.diff": "f",
    "BlobProto.double_data": "d",
    "BlobProto.double_diff": "d",
}
"""Fields that hold packed little-endian numbers as bytes: array's type code by message and field."""
