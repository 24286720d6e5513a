"""Mean images, against the one that Caffe's own tool wrote."""

import numpy as np
import pytest

from places import REFERENCE
from sparknet.caffe.schema import BlobProto
from sparknet.caffe.weights.blobs import blob_of
from sparknet.caffe.weights.mean_image import read_mean, write_mean
from sparknet.errors import NetError

DATABASES = REFERENCE / "datum/databases"
MEAN = DATABASES / "mean.binaryproto"


def test_caffes_file_is_the_mean_of_its_records():
    mean = read_mean(MEAN)
    records = np.load(DATABASES / "records.npz")
    images = next(records[key] for key in records.files if records[key].dtype == np.uint8)
    assert mean.dtype == np.float32
    assert mean.shape == images.shape[1:]
    np.testing.assert_allclose(mean, images.mean(axis=0), rtol=1e-5)


def test_written_again_it_is_the_same_bytes(tmp_path):
    write_mean(tmp_path / "mean.binaryproto", read_mean(MEAN))
    assert (tmp_path / "mean.binaryproto").read_bytes() == MEAN.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["mean.binaryproto"]


@pytest.mark.parametrize("shape", [(3, 2, 2), (1, 3, 2, 2)])
def test_a_shape_of_today_is_read_too(shape, tmp_path):
    image = np.arange(12, dtype=np.float32).reshape(shape)
    (tmp_path / "m").write_bytes(blob_of(image).SerializeToString())
    np.testing.assert_array_equal(read_mean(tmp_path / "m"), image.reshape(3, 2, 2))


def test_what_is_read_may_be_changed():
    mean = read_mean(MEAN)
    mean += 1
    assert not np.array_equal(mean, read_mean(MEAN))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (MEAN.read_bytes()[:-3], "damaged"),
        (b"", r"shape \(0,\)"),
        (b"name: 'net'", "no mean image"),
        (blob_of(np.zeros((2, 3, 4, 4), np.float32)).SerializeToString(), r"shape \(2, 3, 4, 4\)"),
        (blob_of(np.zeros((3, 0, 4), np.float32)).SerializeToString(), r"shape \(3, 0, 4\)"),
        (BlobProto(num=1, channels=3, height=10**9, width=10**9).SerializeToString(), "there are 0"),
    ],
)
def test_what_is_no_mean_image_is_refused_with_its_name(content, told, tmp_path):
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(content)
    with pytest.raises(NetError, match=f"(?s)mean.binaryproto .*{told}"):
        read_mean(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NetError, match="No such file"):
        read_mean(tmp_path / "none")


@pytest.mark.parametrize("shape", [(2, 2), (1, 3, 2, 2), (3, 0, 2)])
def test_only_an_image_is_written(shape, tmp_path):
    with pytest.raises(NetError, match="channels, height, width"):
        write_mean(tmp_path / "m", np.zeros(shape))
    assert list(tmp_path.iterdir()) == []


JAVA = bytes.fromhex("aced0005757200025b460b9c818922e00c420200007870")
"""What Java's ObjectOutputStream writes before the length of a float[]."""


def java_floats(count: int, numbers: np.ndarray) -> bytes:
    return JAVA + count.to_bytes(4, "big") + numbers.astype(">f4").tobytes()


def test_the_first_sparknets_mean_is_three_big_endian_planes(tmp_path, caplog):
    image = np.random.default_rng(1).uniform(0, 255, (3, 256, 256)).astype(np.float32)
    (tmp_path / "imagenet.mean").write_bytes(java_floats(196_608, image))
    assert (tmp_path / "imagenet.mean").stat().st_size == 27 + 4 * 196_608
    mean = read_mean(tmp_path / "imagenet.mean")
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, image)
    assert 'data.channel_order="rgb"' in caplog.messages[0]


@pytest.mark.parametrize(
    "content",
    [
        java_floats(12, np.zeros(11)),
        java_floats(12, np.zeros(13)),
        java_floats(13, np.zeros(13)),
        java_floats(9, np.zeros(9)),
        java_floats(0, np.zeros(0)),
        JAVA,
        JAVA + b"\0\0",
    ],
)
def test_another_array_of_javas_is_no_mean(content, tmp_path):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(NetError, match=r"m is no mean image, or a damaged one: it is a float\[\] of Java's"):
        read_mean(tmp_path / "m")
