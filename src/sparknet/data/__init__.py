"""Rows on their way to the net: readers, shards and their manifest, sampling order, preprocessing, loader.

Numpy and Arrow only: this room knows neither Spark nor torch.
"""

from sparknet.data.columns import Column
from sparknet.data.loader import Batch, Loader
from sparknet.data.manifest import Manifest
from sparknet.data.order import Cursor, Order
from sparknet.data.preprocess import Normalise
from sparknet.data.shards import Shard, ShardTable, ShardWriter

__all__ = [
    "Batch",
    "Column",
    "Cursor",
    "Loader",
    "Manifest",
    "Normalise",
    "Order",
    "Shard",
    "ShardTable",
    "ShardWriter",
]
