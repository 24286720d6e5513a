"""Arrow columns of every kind become arrays; what cannot be used names column, row and partition."""

import numpy as np
import pyarrow as pa
import pytest

from sparknet.data import Column
from sparknet.data.rows import Rows, input_column, input_values, label_values, validation_marks
from sparknet.errors import DataError

ROWS = Rows(partition=3, first=100)


def column_of(array, shape=()):
    return input_column(array, name="x", shape=shape, rows=ROWS)


def values_of(array, shape=()):
    return input_values(array, column=column_of(array, shape), rows=ROWS)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("piece", [slice(0, 3), slice(1, 3), slice(2, 2)])
def test_bytes(kind, piece):
    array = pa.array([b"abcd", b"efgh", b"ijkl"], kind)[piece]
    got = input_values(array, column=column_of(array, (2, 2)), rows=ROWS)
    assert got.dtype == np.uint8
    assert got.shape == (len(array), 2, 2)
    assert got.tobytes() == b"".join(array.to_pylist())


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
@pytest.mark.parametrize("piece", [slice(0, 3), slice(1, 3)])
def test_lists(kind, piece):
    array = pa.array([[1, 2], [3, 4], [5, 6]], kind(pa.float32()))[piece]
    got = values_of(array)
    assert got.dtype == np.float32
    assert got.tolist() == array.to_pylist()
    assert values_of(array, (1, 2)).shape == (len(array), 1, 2)


def test_numbers():
    array = pa.array([1.5, 2.5], pa.float32())
    assert column_of(array) == Column(name="x", dtype="float32", shape=(1,))
    assert values_of(array).tolist() == [[1.5], [2.5]]
    assert values_of(array, (1, 1)).shape == (2, 1, 1)


def test_bytes_need_a_shape():
    with pytest.raises(DataError, match=r"column x is binary, .*set data.shape"):
        column_of(pa.array([b"abc"]))


FLOATS = pa.list_(pa.float32())
WRONG = {
    "null bytes": (pa.array([b"ab", None]), (2,), "row 101 of partition 3 is null"),
    "null list": (pa.array([[1], None], FLOATS), (), "row 101 of partition 3 is null"),
    "null first list": (pa.array([None, [1]], FLOATS), (), "row 100 of partition 3 is null"),
    "null number": (pa.array([1, None], pa.float32()), (), "row 101 of partition 3 is null"),
    "null in a list": (
        pa.array([[9, 9], [1, 2], [3, None]], FLOATS)[1:],
        (),
        "row 101 of partition 3 holds a null",
    ),
    "short bytes": (
        pa.array([b"abc", b"ab"]),
        (3, 1),
        r"row 101 of partition 3 has 2 values; shape \(3, 1\) takes 3",
    ),
    "no bytes": (pa.array([b"", b""]), (3,), "row 100 of partition 3 has 0 values"),
    "long list": (
        pa.array([[1], [1, 2]], FLOATS),
        (),
        r"row 101 of partition 3 has 2 values; shape \(1,\) takes 1",
    ),
    "empty first list": (pa.array([[], [1]], FLOATS), (), "row 100 of partition 3 is empty"),
    "a number for an image": (
        pa.array([1.0], pa.float32()),
        (2,),
        r"row 100 of partition 3 has 1 values; shape \(2,\) takes 2",
    ),
    "not a number": (
        pa.array([[1, 2], [3, float("nan")]], FLOATS),
        (),
        "row 101 of partition 3 holds a value that is not a finite float32",
    ),
    "infinite": (pa.array([1, float("inf")], pa.float32()), (), "row 101 of partition 3 holds a value"),
}


@pytest.mark.parametrize("case", WRONG)
def test_unusable_inputs(case):
    array, shape, message = WRONG[case]
    with pytest.raises(DataError, match=f"column x: {message}"):
        values_of(array, shape)


def test_labels():
    labels = label_values(pa.array([0, 5, 2]), name="y", classes=6, rows=ROWS)
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 5, 2]


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ([1, None], 3, "column y: row 101 of partition 3 is null"),
        ([1, -1], None, "column y, partition 3: row 101 has label -1"),
        ([1, 3], 3, "column y, partition 3: row 101 has label 3; labels must be 0 to 2 for 3 classes"),
        ([1 << 40], None, "row 100 has label 1099511627776; labels must be 0 to 1048575"),
    ],
)
def test_unusable_labels(values, classes, message):
    with pytest.raises(DataError, match=message):
        label_values(pa.array(values, pa.int64()), name="y", classes=classes, rows=ROWS)


def test_marks():
    assert validation_marks(pa.array([True, False]), name="v", rows=ROWS).tolist() == [True, False]
    with pytest.raises(DataError, match="column v: row 101 of partition 3 is null"):
        validation_marks(pa.array([True, None]), name="v", rows=ROWS)
