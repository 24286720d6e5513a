"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the package, no download."""

import importlib
from collections.abc import Iterator
from functools import cache

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import Column, batch_of
from sparknet.data.sources.files import Unit
from sparknet.errors import MissingDependency

__all__ = ["CLASSES", "COLUMNS", "read", "units"]

CLASSES = 10
COLUMNS = (
    Column(name="image", dtype="uint8", shape=(1, 8, 8)),
    Column(name="label", dtype="int64", shape=()),
)
_ROWS = 1797


def units() -> list[Unit]:
    """All rows as one unit: they take 115 kB."""
    return [Unit(path="", start=0, stop=_ROWS)]


def read(unit: Unit) -> Iterator[pa.RecordBatch]:
    """Yield the unit's rows: image uint8 [1, 8, 8] with values 0..16, label int64 0..9.

    Raises:
        MissingDependency: scikit-learn is not installed.
    """
    images, labels = _arrays()
    rows = slice(unit.start, unit.stop)
    yield batch_of(COLUMNS, {"image": images[rows], "label": labels[rows]})


@cache
def _arrays() -> tuple[np.ndarray, np.ndarray]:
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "the digits need scikit-learn, which is not installed: pip install 'sparknet[demo]'"
        ) from error
    digits = datasets.load_digits()
    return digits.images.astype(np.uint8)[:, np.newaxis], digits.target.astype(np.int64)
