"""Arrow columns as Spark sends them, checked and turned into numpy arrays as the shards hold them."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa

from sparknet.data.columns import MOST_CLASSES, Column, check_labels
from sparknet.errors import DataError

__all__ = ["Rows", "input_column", "input_values", "label_values", "validation_marks"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Which rows of the DataFrame a batch holds, for error messages."""

    partition: int
    """Spark partition."""
    first: int
    """Number of the batch's first row within the partition."""

    def name(self, index: int) -> str:
        """Name the batch's row `index`."""
        return f"row {self.first + index} of partition {self.partition}"


def input_column(array: Any, *, name: str, shape: tuple[int, ...], rows: Rows) -> Column:
    """Describe the input column that `array` starts: bytes stay uint8, numbers become float32.

    Args:
        array: its first Arrow array, of one row at least: binary, list of float32, or float32.
        name: the column's name.
        shape: of one row; () takes (length of the first row,), which bytes do not allow.
        rows: what the array holds.

    Raises:
        DataError: bytes without a shape, or a first row that is null or empty.
    """
    kind = array.type
    if _is_binary(kind):
        if not shape:
            raise DataError(
                f"column {name} is binary, which says nothing of its shape: set data.shape, "
                "as in [3, 32, 32] for (channels, height, width)"
            )
        return Column(name=name, dtype="uint8", shape=shape)
    if shape or not _is_list(kind):
        return Column(name=name, dtype="float32", shape=shape or (1,))
    _refuse_nulls(array, name=name, rows=rows)
    length = len(array[0])
    if not length:
        raise DataError(f"column {name}: {rows.name(0)} is empty; every row needs a value: remove such rows")
    return Column(name=name, dtype="float32", shape=(length,))


def input_values(array: Any, *, column: Column, rows: Rows) -> np.ndarray:
    """Check an Arrow array of the input column and give its values, `column.dtype` [n, *shape].

    Raises:
        DataError: naming column and row: a null, a width that is not `column.shape`'s, or a number that is
            not finite.
    """
    _refuse_nulls(array, name=column.name, rows=rows)
    if _is_binary(array.type):
        values, widths = _bytes(array)
    elif _is_list(array.type):
        values, widths = _numbers(array, name=column.name, rows=rows)
    else:
        values, widths = array.to_numpy(zero_copy_only=False), np.ones(len(array), np.int64)
    bad = widths != column.width
    if bad.any():
        at = int(bad.argmax())
        raise DataError(
            f"column {column.name}: {rows.name(at)} has {int(widths[at])} values; shape {column.shape} takes "
            f"{prod(column.shape)}: correct the rows or data.shape"
        )
    values = values.reshape(len(array), *column.shape)
    if column.dtype == "float32":
        _refuse_infinite(values, name=column.name, rows=rows)
    return values


def label_values(array: Any, *, name: str, classes: int | None, rows: Rows) -> np.ndarray:
    """Check an Arrow int64 array of labels and give them, int64 [n].

    Raises:
        DataError: naming column and row: a null, or a label outside 0..classes-1.
    """
    _refuse_nulls(array, name=name, rows=rows)
    labels = array.to_numpy(zero_copy_only=True)
    where = f"column {name}, partition {rows.partition}"
    check_labels(labels, classes=classes or MOST_CLASSES, where=where, first_row=rows.first)
    return labels


def validation_marks(array: Any, *, name: str, rows: Rows) -> np.ndarray:
    """Check an Arrow array of booleans and give them, bool [n].

    Raises:
        DataError: naming column and row of a null.
    """
    _refuse_nulls(array, name=name, rows=rows)
    return array.to_numpy(zero_copy_only=False)


def _is_binary(kind: Any) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_list(kind: Any) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _refuse_nulls(array: Any, *, name: str, rows: Rows) -> None:
    if array.null_count:
        at = int(array.is_null().to_numpy(zero_copy_only=False).argmax())
        raise DataError(f"column {name}: {rows.name(at)} is null; every row needs a value: remove such rows")


def _refuse_infinite(values: np.ndarray, *, name: str, rows: Rows) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        at = int(finite.reshape(len(values), -1).all(axis=1).argmin())
        raise DataError(
            f"column {name}: {rows.name(at)} holds a value that is not a finite float32: correct such rows"
        )


def _bytes(array: Any) -> tuple[np.ndarray, np.ndarray]:
    """All bytes of a binary array, uint8, and the number in each row; no copy."""
    large = pa.types.is_large_binary(array.type)
    _, offsets, data = array.buffers()
    if not len(array):
        return np.zeros(0, np.uint8), np.zeros(0, np.int64)
    edges = np.frombuffer(offsets, np.int64 if large else np.int32)[array.offset :][: len(array) + 1]
    stored = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return stored[edges[0] : edges[-1]], np.diff(edges)


def _numbers(array: Any, *, name: str, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of a list array, float32, and how many are in each row."""
    edges = array.offsets.to_numpy()
    values = array.flatten()
    if values.null_count:
        place = int(values.is_null().to_numpy(zero_copy_only=False).argmax()) + int(edges[0])
        at = int(np.searchsorted(edges, place, side="right")) - 1
        raise DataError(f"column {name}: {rows.name(at)} holds a null; every value is needed: remove such rows")
    return values.to_numpy(zero_copy_only=True), np.diff(edges)
