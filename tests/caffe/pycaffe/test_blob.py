"""Blobs as pycaffe has them."""

import numpy as np
import pytest

from sparknet.caffe.pycaffe.blob import Blob, Blobs


def test_a_blob_has_the_names_of_pycaffe():
    blob = Blob((2, 3, 4))
    assert (blob.num, blob.channels, blob.height, blob.width) == (2, 3, 4, 1)
    assert (blob.count, blob.shape, blob.data.shape, blob.diff.shape) == (24, (2, 3, 4), (2, 3, 4), (2, 3, 4))
    assert blob.data.dtype == blob.diff.dtype == np.float32
    assert not blob.data.any()
    assert Blob().data.shape == ()


def test_what_was_written_stays_as_long_as_there_is_room():
    blob = Blob((4,))
    blob.data[...] = [1, 2, 3, 4]
    blob.reshape(1, np.int64(2))
    assert blob.data.tolist() == [[1, 2]]
    blob.reshape(2, 2)
    assert blob.data.tolist() == [[1, 2], [3, 4]]
    blob.reshape(5)
    assert blob.data.tolist() == [0] * 5


def test_views_are_of_one_memory():
    blob = Blob((2,))
    blob.data[0], blob.diff[0] = 1, 2
    assert (blob.data[0], blob.diff[0]) == (1, 2)
    blob.as_type(np.dtype(np.float64))
    assert blob.data.dtype == np.float64
    assert (blob.data[0], blob.diff[0]) == (1, 2)


def test_bound_numbers_are_the_others_own():
    blob, numbers = Blob((1,)), np.arange(6.0).reshape(2, 3)
    blob.bind(numbers)
    assert (blob.shape, blob.data.dtype) == ((2, 3), np.float64)
    blob.data[0, 0] = 9
    assert numbers[0, 0] == 9
    numbers = np.zeros(2, np.float32)
    numbers.setflags(write=False)
    blob.bind(numbers)
    with pytest.raises(ValueError, match="read-only"):
        blob.data[0] = 1


@pytest.mark.parametrize("shape", [(-1,), (2.5,), ("2",)])
def test_a_shape_that_is_none_is_refused(shape: tuple):
    with pytest.raises((ValueError, TypeError)):
        Blob().reshape(*shape)


def test_five_axes_have_no_legacy_names():
    with pytest.raises(ValueError, match="at most four axes"):
        _ = Blob((1, 2, 3, 4, 5)).num


def test_learned_blobs_are_added():
    blobs = Blobs()
    blobs.add_blob(2, 3)
    blobs.add_blob()
    assert [blob.shape for blob in blobs] == [(2, 3), ()]
