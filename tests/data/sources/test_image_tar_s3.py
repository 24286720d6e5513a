"""Tar archives of images in an object store: few large requests, no byte twice, broken answers made good."""

import io
import tarfile

import numpy as np
import pytest

from s3_server import reach, s3_server
from sparknet.data.sources import image_tar
from sparknet.data.sources.files import Location
from sparknet.data.storage import retry

MB = 1 << 20
BUCKET = "pictures"
ROOT = f"s3://{BUCKET}/imagenet"


def image(number):
    generator = np.random.default_rng(number)
    return b"\xff\xd8\xff\xe0" + generator.bytes(int(generator.integers(30_000, 900_000)))


def tar_of(numbers):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in numbers:
            info = tarfile.TarInfo(f"{number}.JPEG")
            data = image(number)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def sizes():
    """Of the tar files by name, as the module's bucket holds them."""
    return {}


@pytest.fixture(scope="module")
def running(sizes):
    with s3_server(BUCKET) as server:
        for part in range(2):
            content = tar_of(range(50 * part, 50 * part + 50))
            sizes[f"train.{part}.tar"] = len(content)
            key = f"imagenet/ILSVRC2012_img_train/train.{part}.tar"
            server.client().put_object(Bucket=BUCKET, Key=key, Body=content)
        lines = "".join(f"n/{number}.JPEG {number % 7}\n" for number in range(100))
        server.client().put_object(Bucket=BUCKET, Key="imagenet/train.txt", Body=lines.encode())
        yield server


@pytest.fixture
def server(running, monkeypatch):
    reach(running, monkeypatch)
    running.clear()
    monkeypatch.setattr(retry, "pause", lambda seconds: None)
    yield running
    running.clear()


def numbers(units):
    """Of the images in order; each is compared with what was written."""
    found = list[int]()
    for unit in units:
        for batch in image_tar.read(unit):
            for row in batch.to_pylist():
                number = int(row["name"].removesuffix(".JPEG"))
                assert (row["image"], row["label"], row["error"]) == (image(number), number % 7, None)
                found.append(number)
    return found


def test_archives_are_read_in_large_requests_and_no_byte_twice(server, sizes):
    units = image_tar.open_source(Location(path=ROOT)).partitions
    assert [unit.stop for unit in units] == list(sizes.values())
    assert not server.ranges(".tar")  # the driver looks into none of them
    assert numbers(units) == list(range(100))
    for name, size in sizes.items():
        asked = [(first, last + 1) for first, last in server.ranges(name)]
        assert sum(last - first for first, last in asked) == size
        assert all(last - first >= 7 * MB for first, last in asked[:-1])  # 8 MB, less what is still there
        assert len(asked) <= size // (7 * MB) + 1


def test_one_archive_and_a_glob_are_found(server):
    for path in ("/ILSVRC2012_img_train/train.0.tar", "/ILSVRC2012_img_train/train.[0].tar"):
        units = image_tar.open_source(Location(path=ROOT + path)).partitions
        assert [unit.uri for unit in units] == [f"{ROOT}/ILSVRC2012_img_train/train.0.tar"]


def test_a_large_archive_is_cut_by_the_driver(server, sizes, monkeypatch):
    monkeypatch.setattr(image_tar, "_REMOTE_WHOLE_BYTES", 10 * MB)
    monkeypatch.setattr(image_tar, "_PARTITION_BYTES", 9 * MB)
    units = image_tar.open_source(Location(path=ROOT)).partitions
    assert len(units) >= 4
    assert all(
        last + 1 - first >= 8 * MB for first, last in server.ranges(".tar") if last + 1 not in sizes.values()
    )
    server.clear()
    assert numbers(units) == list(range(100))
    spans = sorted((first, last + 1) for first, last in server.ranges("train.0.tar"))
    assert [first for first, _ in spans] == [0, *(last for _, last in spans[:-1])]


def test_broken_answers_are_made_good(server):
    units = image_tar.open_source(Location(path=ROOT)).partitions
    for kind in ("cut", "500", "slow_down"):
        server.inject(kind, times=1, method="GET", part=".tar")
    assert numbers(units) == list(range(100))
    assert sorted(request.fault for request in server.requests if request.fault) == ["500", "cut", "slow_down"]
