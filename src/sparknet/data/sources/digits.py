"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the package, no download."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import LABEL, Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import Location, RowRange
from sparknet.data.sources.image_batches import pixel_batch
from sparknet.data.sources.source import Source
from sparknet.data.storage.place import LOCAL, Storage
from sparknet.errors import DataError, MissingDependency

__all__ = ["open_source", "read"]

_SCHEMA = RowSchema(
    inputs=(Column(name="image", dtype="uint8", shape=(1, 8, 8)),), targets=(replace(LABEL, classes=10),)
)
_ROWS = 1797


def open_source(where: Location) -> Source:
    """All rows as one partition: they take 115 kB.

    Raises:
        DataError: a path or a test split is asked for.
    """
    if where.path or where.split != "train":
        raise DataError(
            f"digits: path {where.path!r}, split {where.split!r}; the digits have neither files nor a test split: "
            "leave both out and hold out a share (data.validation_fraction)"
        )
    return Source(schema=_SCHEMA, files=(), cut=lambda: [RowRange(path="", start=0, stop=_ROWS)])


def read(partition: RowRange, storage: Storage = LOCAL) -> Iterator[pa.RecordBatch]:
    """Yield the partition's rows: image binary, uint8 [1, 8, 8] with values 0..16, label int64 0..9.

    Raises:
        MissingDependency: scikit-learn is not installed.
    """
    images, labels = _arrays()
    rows = slice(partition.start, partition.stop)
    yield pixel_batch(images[rows], labels[rows])


# Once in a process: the package parses a text file for it.
@cache
def _arrays() -> tuple[np.ndarray, np.ndarray]:
    try:
        # Not at the top: it is an extra, and the command line imports this module for its name alone.
        datasets = importlib.import_module("sklearn.datasets")
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "the digits need scikit-learn, which is not installed: pip install 'sparknet[demo]'"
        ) from error
    digits = datasets.load_digits()
    # Floats in the package, but whole numbers from 0 to 16.
    return digits.images.astype(np.uint8)[:, np.newaxis], digits.target.astype(np.int64)
