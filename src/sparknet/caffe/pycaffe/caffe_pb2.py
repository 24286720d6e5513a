"""`caffe.proto.caffe_pb2` as far as layers use it: the messages of data and mean files."""

# With numbers declared as numbers, as layers read and write them one by one.
from sparknet.caffe.schema import Datum
from sparknet.caffe.schema import LooseBlobProto as BlobProto

__all__ = ["BlobProto", "Datum"]
