"""The readers of digits, CIFAR-10 and MNIST: rows come out as they were written, damage is named."""

import gzip
import importlib
import os
import pickle

import numpy as np
import pytest

from formats import cifar_directory, idx, random_rows, write_cifar, write_mnist
from opened import opened, partitions, pixels_and_labels
from sparknet.data.sources import cifar10, digits, mnist
from sparknet.data.sources.files import Location, find_files, local_path, split_rows
from sparknet.data.storage.fingerprint import describe_files
from sparknet.data.storage.place import LOCAL, Storage
from sparknet.errors import DataError, MissingDependency


def read_all(module, units):
    """All rows of all units: images [n, *shape] and labels [n]; checks that batches are bounded."""
    batches = [batch for unit in units for batch in module.read(unit)]
    assert all(batch.nbytes < 5_000_000 for batch in batches)
    assert all(batch.schema.names == ["image", "label"] for batch in batches)
    return pixels_and_labels(module, batches)


def assert_rows(module, units, expected):
    images, labels = read_all(module, units)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images.reshape(len(images), -1), expected[0].reshape(len(images), -1))
    np.testing.assert_array_equal(labels, expected[1])


def test_digits_are_scikit_learns():
    images, labels = read_all(digits, partitions(digits))
    assert images.shape == (1797, 1, 8, 8)
    assert images.max() == 16
    assert labels[:10].tolist() == list(range(10))
    assert images[0, 0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_digits_without_scikit_learn_name_the_install_command(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    digits._arrays.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingDependency, match=r"pip install 'sparknet\[demo\]'"):
        list(digits.read(partitions(digits)[0]))


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar_directory(tmp_path, inside, split):
    train, test = cifar_directory(tmp_path / inside)
    units = partitions(cifar10, str(tmp_path), split=split)
    assert len(units) == {"train": 3, "test": 1}[split]
    assert_rows(cifar10, units, {"train": train, "test": test}[split])


def test_cifar_channels_are_red_green_blue_planes(tmp_path):
    record = bytes([7]) + bytes([1] * 1024) + bytes([2] * 1024) + bytes([3] * 1024)
    (tmp_path / "one.bin").write_bytes(record)
    images, labels = read_all(cifar10, partitions(cifar10, str(tmp_path / "one.bin")))
    assert images[0, :, 0, 0].tolist() == [1, 2, 3]
    assert labels.tolist() == [7]


def test_cifar_glob_and_uri_and_large_files_in_several_units(tmp_path):
    rows = random_rows(11_000, (3, 32, 32))
    file = write_cifar(tmp_path / "big batch.bin", *rows)
    for path in (str(tmp_path / "*.bin"), file.as_uri(), str(file)):
        units = partitions(cifar10, path)
        assert [unit.stop - unit.start for unit in units] == [3666, 3667, 3667]
    assert_rows(cifar10, units, rows)


def test_globs_in_any_part_of_a_local_path(tmp_path):
    for name in ("one", "two"):
        cifar_directory(tmp_path / name)
    (tmp_path / "three" / "test_batch.bin").mkdir(parents=True)  # a directory is no file
    found = opened(cifar10, str(tmp_path / "*" / "test_*.bin")).files
    assert [file.uri for file in found] == [str(tmp_path / name / "test_batch.bin") for name in ("one", "two")]
    assert {file.bytes for file in found} == {15 * 3073}


def test_files_know_size_and_time(tmp_path):
    cifar_directory(tmp_path)
    paths = sorted(tmp_path.glob("data_batch_*.bin"))
    assert describe_files(opened(cifar10, str(tmp_path)).files) == describe_files(paths)
    write_mnist(tmp_path, "train", *random_rows(5, (1, 28, 28)))
    paths = sorted(tmp_path.glob("train-*"))
    assert describe_files(opened(mnist, str(tmp_path)).files) == describe_files(paths)


def test_units_travel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cifar_directory(tmp_path)
    unit = pickle.loads(pickle.dumps(partitions(cifar10, "data_batch_1.bin")[0]))
    assert unit.path == str(tmp_path / "data_batch_1.bin")
    where = Location(path="s3://bucket/key", storage=Storage(s3_endpoint="http://127.0.0.1:9000"))
    assert (where.split, where.labels) == ("train", "")
    assert pickle.loads(pickle.dumps(where)) == where


@pytest.mark.parametrize("size", [0, 3072, 3074])
def test_cifar_file_of_a_wrong_size(tmp_path, size):
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(size))
    with pytest.raises(DataError, match=rf"data_batch_1.bin: {size} bytes; .*3073 bytes: fetch"):
        partitions(cifar10, str(tmp_path))


def test_cifar_label_out_of_range_names_file_row_and_value(tmp_path):
    images, labels = random_rows(1500, (3, 32, 32))
    labels[1200] = 10
    write_cifar(tmp_path / "data_batch_1.bin", images, labels)
    with pytest.raises(DataError, match=r"data_batch_1.bin: row 1200 has label 10; labels must be 0 to 9 for 10"):
        read_all(cifar10, partitions(cifar10, str(tmp_path)))


def test_cifar_file_that_shrinks_or_vanishes_after_listing(tmp_path):
    file = write_cifar(tmp_path / "a.bin", *random_rows(10, (3, 32, 32)))
    units = partitions(cifar10, str(file))
    os.truncate(file, 5 * 3073)
    with pytest.raises(DataError, match=r"a.bin: ends at byte 15365, 30730 bytes from 0 are needed; it shrank"):
        read_all(cifar10, units)
    file.unlink()
    with pytest.raises(DataError, match=r"a.bin: cannot be read: .*every worker reaches it"):
        read_all(cifar10, units)


def test_missing_paths(tmp_path):
    with pytest.raises(DataError, match=r"nothing: no such file, directory or glob match; correct data.path"):
        partitions(cifar10, str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=r"no CIFAR-10 test batches \(test_batch.bin or .*set data.path"):
        partitions(cifar10, str(tmp_path), split="test")
    with pytest.raises(DataError, match="ftp://b/: scheme ftp is not known to Arrow; use a path"):
        partitions(cifar10, "ftp://b/k")
    with pytest.raises(DataError, match=r"path is ''|path is empty"):
        partitions(cifar10, "")


def test_local_path_takes_local_paths_only():
    with pytest.raises(DataError, match=r"s3://b/k: scheme s3 is not read .*copy the files"):
        local_path("s3://b/k")


def test_local_path_decodes_file_uris(tmp_path):
    assert local_path((tmp_path / "a b").as_uri()) == tmp_path / "a b"
    assert local_path(f"file:{tmp_path}/x") == tmp_path / "x"


def test_find_files_prefers_the_first_pattern(tmp_path):
    for name in ("b.x", "a.x", "c.y"):
        (tmp_path / name).write_bytes(b"")
    found = find_files(str(tmp_path), in_directory=["*.x", "*.y"], what="letters")
    assert [file.name for file in found] == ["a.x", "b.x"]


def test_split_rows_covers_every_row_once(tmp_path):
    for rows in (0, 1, 5, 6, 29):
        units = split_rows(tmp_path / "f", rows=rows, most=5)
        assert units == split_rows(LOCAL.place(str(tmp_path / "f")), rows=rows, most=5)
        assert [row for unit in units for row in range(unit.start, unit.stop)] == list(range(rows))
        assert all(1 <= unit.stop - unit.start <= 5 for unit in units)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize(("split", "stem"), [("train", "train"), ("test", "t10k")])
def test_mnist_directory(tmp_path, zipped, dot, split, stem):
    rows = random_rows(50, (1, 28, 28))
    write_mnist(tmp_path, stem, *rows, dot=dot, zipped=zipped)
    assert_rows(mnist, partitions(mnist, str(tmp_path), split=split), rows)


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_images_file_implies_its_labels(tmp_path, zipped):
    rows = random_rows(41_000, (1, 28, 28))
    file = write_mnist(tmp_path, "train", *rows, zipped=zipped)
    units = partitions(mnist, str(file))
    assert len(units) == (1 if zipped else 3)
    assert_rows(mnist, units, rows)
    assert [path.name for path in opened(mnist, str(tmp_path / "train-*")).files] == [
        file.name,
        file.name.replace("images-idx3", "labels-idx1"),
    ]


def test_mnist_labels_may_be_plain_beside_zipped_images(tmp_path):
    rows = random_rows(5, (1, 28, 28))
    file = write_mnist(tmp_path, "train", *rows, zipped=True)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.with_suffix("").write_bytes(gzip.decompress(labels.read_bytes()))
    labels.unlink()
    assert_rows(mnist, partitions(mnist, str(file)), rows)


def images_file(directory):
    return directory / "train-images-idx3-ubyte"


def labels_file(directory):
    return directory / "train-labels-idx1-ubyte"


MNIST_DAMAGE = {
    "other magic": (
        lambda d: images_file(d).write_bytes(idx(np.zeros((5, 28, 28)), magic=0x802)),
        r"images-idx3-ubyte: magic number 0x802; IDX images start with 0x803",
    ),
    "labels in the place of images": (
        lambda d: images_file(d).write_bytes(labels_file(d).read_bytes()),
        r"images-idx3-ubyte: truncated|magic number 0x801",
    ),
    "other size": (
        lambda d: images_file(d).write_bytes(idx(np.zeros((5, 20, 20)))),
        r"images of 20x20; MNIST images are 28x28",
    ),
    "no rows": (
        lambda d: images_file(d).write_bytes(idx(np.zeros((0, 28, 28)))),
        r"images-idx3-ubyte: no rows; .* at least one",
    ),
    "empty file": (
        lambda d: images_file(d).write_bytes(b""),
        r"images-idx3-ubyte: truncated, 16 bytes are missing: fetch it again",
    ),
    "truncated": (
        lambda d: os.truncate(images_file(d), 3000),
        r"images-idx3-ubyte: 3000 bytes; 5 rows take 3936: fetch it again",
    ),
    "fewer labels": (
        lambda d: labels_file(d).write_bytes(idx(np.zeros(4))),
        r"has 5 images and .*labels-idx1-ubyte has 4 labels; they must be as many",
    ),
    "no labels file": (
        lambda d: labels_file(d).unlink(),
        r"train-labels-idx1-ubyte: no such file; train-images-idx3-ubyte needs its labels",
    ),
    "label out of range": (
        lambda d: labels_file(d).write_bytes(idx(np.array([0, 1, 2, 77, 4]))),
        r"labels-idx1-ubyte: row 3 has label 77; labels must be 0 to 9",
    ),
}


@pytest.mark.parametrize("damage", MNIST_DAMAGE)
def test_damaged_mnist(tmp_path, damage):
    spoil, message = MNIST_DAMAGE[damage]
    write_mnist(tmp_path, "train", *random_rows(5, (1, 28, 28)))
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        read_all(mnist, partitions(mnist, str(tmp_path)))


@pytest.mark.parametrize("keep", [5, 200, -9])
def test_truncated_gzip(tmp_path, keep):
    file = write_mnist(tmp_path, "train", *random_rows(5, (1, 28, 28)), zipped=True)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"idx3-ubyte.gz: damaged: .*fetch it again"):
        read_all(mnist, partitions(mnist, str(file)))


def test_mnist_needs_names_that_lead_to_the_labels(tmp_path):
    write_mnist(tmp_path, "train", *random_rows(5, (1, 28, 28)))
    with pytest.raises(DataError, match="only labels; MNIST is named by its images file"):
        partitions(mnist, str(labels_file(tmp_path)))
    images_file(tmp_path).rename(tmp_path / "pictures")
    with pytest.raises(DataError, match="pictures: the name of an MNIST images file must hold 'images'"):
        partitions(mnist, str(tmp_path / "pictures"))
