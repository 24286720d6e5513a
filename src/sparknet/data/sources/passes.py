"""Rows of nets that make their own: each stands for a pass of the net and holds its number, which nobody reads.

So such nets are trained by the loop that trains all others: it counts steps in batches of rows.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import Location, RowRange
from sparknet.data.sources.source import Source
from sparknet.data.storage.place import LOCAL, Storage
from sparknet.errors import DataError

__all__ = ["PASS", "open_source", "read"]

PASS = "pass"
"""The only column, input and target."""
_COLUMN = Column(name=PASS, dtype="int64", shape=())
_ROWS = 1 << 16
"""More than there are workers; they are read round and round."""


def open_source(where: Location) -> Source:
    """All passes as one partition.

    Raises:
        DataError: a path or a test split is asked for.
    """
    if where.path or where.split != "train":
        raise DataError(
            f"source net: path {where.path!r}, split {where.split!r}; the net's own layers read its rows: leave "
            "both out"
        )
    schema = RowSchema(inputs=(_COLUMN,), targets=(_COLUMN,))
    return Source(schema=schema, files=(), cut=lambda: [RowRange(path="", start=0, stop=_ROWS)])


def read(partition: RowRange, storage: Storage = LOCAL) -> Iterator[pa.RecordBatch]:
    """Yield the partition's rows: pass int64, their numbers."""
    yield pa.record_batch({PASS: np.arange(partition.start, partition.stop)})
