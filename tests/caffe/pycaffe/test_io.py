"""`caffe.io`: images, and messages to and from arrays."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparknet.caffe import pycaffe
from sparknet.caffe.pycaffe import caffe_pb2, io
from sparknet.caffe.weights.mean_image import read_mean, write_mean


def test_images_are_read_in_rgb_from_0_to_1(tmp_path: Path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 1] = [255, 51, 0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = io.load_image(tmp_path / "a.png")
    assert (found.dtype, found.shape) == (np.float32, (2, 3, 3))
    np.testing.assert_allclose(found[0, 1], [1, 0.2, 0])
    grey = io.load_image(tmp_path / "a.png", color=False)
    assert grey.shape == (2, 3, 1)
    assert grey[0, 1, 0] == pytest.approx(0.2125 + 0.2 * 0.7154)
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "b.png")
    assert io.load_image(tmp_path / "b.png").shape == (2, 3, 3)
    assert io.load_image(tmp_path / "b.png", color=False)[0, 1, 0] == 1


def test_images_are_resized():
    image = np.repeat(np.arange(4.0).reshape(1, 4, 1), 2, axis=0)
    assert io.resize_image(image, (2, 2), interp_order=1)[0, :, 0].tolist() == [0.5, 2.5]
    assert io.resize_image(image, (4, 8), interp_order=0).shape == (4, 8, 1)
    with pytest.raises(ValueError, match="interp_order is 2"):
        io.resize_image(image, (2, 2), interp_order=2)


def test_a_transformer_does_one_thing_after_the_other():
    transformer = io.Transformer({"data": (1, 3, 2, 2)})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_channel_swap("data", (2, 1, 0))
    transformer.set_raw_scale("data", 255)
    transformer.set_mean("data", np.array([1.0, 2.0, 3.0]))
    transformer.set_input_scale("data", 0.5)
    image = np.zeros((2, 2, 3))
    image[0, 1] = [0.2, 0.4, 0.6]
    found = transformer.preprocess("data", image)
    assert (found.dtype, found.shape) == (np.float32, (3, 2, 2))
    np.testing.assert_allclose(found[:, 0, 1], [(153 - 1) / 2, (102 - 2) / 2, (51 - 3) / 2])
    assert transformer.preprocess("data", np.ones((6, 4, 3))).shape == (3, 2, 2)
    with pytest.raises(ValueError, match="'image' is not one of the inputs 'data'"):
        transformer.set_raw_scale("image", 1)


@pytest.mark.parametrize("array", [np.arange(12, dtype=np.uint8), np.arange(12) / 4])
def test_a_datum_comes_back(array: np.ndarray):
    datum = caffe_pb2.Datum.FromString(io.array_to_datum(array.reshape(3, 2, 2), 7).SerializeToString())
    assert datum.label == 7
    np.testing.assert_array_equal(io.datum_to_array(datum), array.reshape(3, 2, 2))
    with pytest.raises(ValueError, match="a Datum has"):
        io.array_to_datum(array)


def test_a_mean_file_is_read_as_layers_read_it(tmp_path: Path):
    mean = np.random.default_rng(1).random((3, 4, 5)).astype(np.float32)
    write_mean(tmp_path / "mean.binaryproto", mean)
    blob = caffe_pb2.BlobProto()
    blob.ParseFromString((tmp_path / "mean.binaryproto").read_bytes())
    np.testing.assert_array_equal(io.blobproto_to_array(blob)[0], mean)
    assert np.float32(blob.data[0]) == mean[0, 0, 0]
    again = io.array_to_blobproto(mean[np.newaxis], mean[np.newaxis] + 1)
    (tmp_path / "again.binaryproto").write_bytes(again.SerializeToString())
    np.testing.assert_array_equal(read_mean(tmp_path / "again.binaryproto"), mean)
    np.testing.assert_allclose(io.blobproto_to_array(again, return_diff=True)[0], mean + 1)


def test_what_is_not_here_says_so():
    with pytest.raises(AttributeError, match="caffe has no 'Net' here"):
        _ = pycaffe.Net
