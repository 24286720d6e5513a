"""Sources opened by a path."""

import numpy as np

from sparknet.data.sources.files import Location
from sparknet.data.sources.opening import open_source
from sparknet.data.storage.place import LOCAL
from sparknet.spark.frames.column_kinds import FAULT
from sparknet.spark.frames.read_source import read_source


def opened(module, path="", *, storage=LOCAL, **where):
    """What a format's module finds at a path."""
    return module.open_source(Location(path=str(path), storage=storage, **where))


def partitions(module, path="", **where):
    return opened(module, path, **where).partitions


def pixels_and_labels(module, batches):
    """Rows of bare pixels as arrays: uint8 [n, *shape] and int64 [n]."""
    shape = module._SCHEMA.input.shape
    batches = list(batches)
    cells = [np.frombuffer(cell, np.uint8) for batch in batches for cell in batch.column("image").to_pylist()]
    labels = [label for batch in batches for label in batch.column("label").to_pylist()]
    return np.stack(cells).reshape(-1, *shape), np.array(labels)


def rows_at(spark, data, *, validation=False):
    """The rows of a source as a DataFrame."""
    return checked_rows_at(spark, data, validation=validation).drop(FAULT)


def checked_rows_at(spark, data, *, validation=False):
    """The same with what is wrong with rows."""
    return read_source(spark, open_source(data, validation=validation), data)
