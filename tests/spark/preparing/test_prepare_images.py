"""Preparation of encoded images on a real session: sizes, damage, both ways to keep them, and what is the same."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import pytest

from encoded import png
from formats import random_rows
from prepared import as_set, open_prepare_session, rows_of, write_parquet
from sparknet.config import Data
from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.rows.columns import ImageForm
from sparknet.data.rows.image_codec import decode_into
from sparknet.data.shards.prepared import Part
from sparknet.data.sources import datum
from sparknet.data.sources.opening import open_source
from sparknet.errors import DataError
from sparknet.spark.preparing import prepare as preparation
from sparknet.spark.preparing.prepare import Frames, prepare, prepare_frames

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark():
    session = open_prepare_session("test_prepare_images")
    yield session
    session.stop()


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def no_job(monkeypatch):
    """Fails the test when a preparation runs a job."""

    def refuse(*arguments):
        raise AssertionError("a job was run")

    return lambda: monkeypatch.setattr(preparation, "_run_job", refuse)


def sizes_of_photos(count):
    """Images of many sizes, their labels and PNG files."""
    random = np.random.default_rng(3)
    images = [random.integers(0, 256, (3, *random.integers(5, 12, 2)), dtype=np.uint8) for _ in range(count)]
    return [png(image) for image in images], (np.arange(count) % 4).tolist()


def photos(directory, files, labels, **columns):
    return write_parquet(directory, {"image": pa.array(files, pa.binary()), "label": labels, **columns})


def brought_to(file, form, size):
    out = np.empty((3, *size), np.uint8)
    decode_into(out, file, form=form)
    return out


@pytest.mark.parametrize("mode", ["exact", "shorter_side"])
def test_encoded_images_in_parquet_are_resized_and_kept_either_way(spark, store, tmp_path, mode):
    files, labels = sizes_of_photos(60)
    path = photos(tmp_path / "p", files, labels)
    data = Data(
        source="parquet",
        path=path,
        validation_fraction=0.2,
        resize=(6, 7),
        resize_mode=mode,
        channel_order="bgr",
        threads=2,
    )
    form = ImageForm(order="bgr", resize_mode=mode)
    expected = np.stack([brought_to(file, form, (6, 7)) for file in files])
    made = [prepare(spark, replace(data, keep=keep), store=store, seed=2) for keep in ("pixels", "encoded")]
    rows = []
    for (directory, manifest), image in zip(made, (None, form), strict=True):
        assert (manifest.rows.input.shape, manifest.rows.input.dtype, manifest.rows.input.image) == (
            (3, 6, 7),
            "uint8",
            image,
        )
        train, validation = rows_of(directory, manifest, "train"), rows_of(directory, manifest, "validation")
        assert sorted(as_set(*train) + as_set(*validation)) == as_set(expected, labels)
        np.testing.assert_allclose(manifest.columns[0].channel_mean, train[0].mean(axis=(0, 2, 3)))
        np.testing.assert_allclose(manifest.columns[0].channel_std, train[0].std(axis=(0, 2, 3)))
        np.testing.assert_allclose(manifest.columns[0].load_mean_image(directory), train[0].mean(axis=0), rtol=1e-6)
        assert (manifest.skipped, manifest.skipped_examples) == (0, ())
        rows.append((*train, *validation))
    for pixels, encoded in zip(*rows, strict=True):
        np.testing.assert_array_equal(pixels, encoded)
    (_, pixels), (_, encoded) = made
    assert pixels.columns[0].channel_std == encoded.columns[0].channel_std


def test_images_of_one_size_say_their_shape_and_others_are_refused(spark, store, tmp_path):
    images, labels = random_rows(30, (3, 5, 4))
    files = [png(image) for image in images]
    data = Data(source="parquet", path=photos(tmp_path / "p", files, labels), validation_fraction=0.2)
    directory, manifest = prepare(spark, data, store=store, seed=0)
    assert manifest.rows.input.shape == (3, 5, 4)
    both = [rows_of(directory, manifest, split) for split in ("train", "validation")]
    assert sorted(as_set(*both[0]) + as_set(*both[1])) == as_set(images, labels)
    files[20] = png(random_rows(1, (3, 5, 6))[0][0])
    other = replace(data, path=photos(tmp_path / "q", files, labels))
    with pytest.raises(DataError, match=r"is an image of 5 x 6 \(height x width\); 5 x 4 is .*set data.resize"):
        prepare(spark, other, store=store, seed=0)


def test_pixels_and_encoded_images_are_not_mixed(spark, store, tmp_path):
    with DatabaseWriter(tmp_path / "pixels") as writer:
        writer.append(datum.write(shape=(3, 4, 4), data=bytes(48), label=0))
    with DatabaseWriter(tmp_path / "files") as writer:
        writer.append(datum.write(data=png(random_rows(1, (3, 4, 4))[0][0]), label=0, encoded=True))
    names = [str(tmp_path / name) for name in ("pixels", "files")]
    for path, other in (names, names[::-1]):
        data = Data(source="lmdb", path=path, validation_path=other)
        with pytest.raises(DataError, match=r"files holds encoded images and .*pixels pixels; both must be of one"):
            prepare(spark, data, store=store, seed=0)


def pixel_png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
@pytest.mark.parametrize("channels", [1, 4])
def test_images_keep_the_channels_of_their_files(spark, store, tmp_path, channels, keep):
    images, labels = random_rows(30, (5, 4, channels))
    files = [pixel_png(image) for image in images]
    data = Data(
        source="parquet",
        path=photos(tmp_path / "p", files, labels),
        validation_fraction=0.2,
        channels="stored",
        channel_order="bgr",
        keep=keep,
    )
    directory, manifest = prepare(spark, data, store=store, seed=0)
    assert manifest.rows.input.shape == (channels, 5, 4)
    both = [rows_of(directory, manifest, split) for split in ("train", "validation")]
    assert sorted(as_set(*both[0]) + as_set(*both[1])) == as_set(images.transpose(0, 3, 1, 2), labels)


def test_a_record_of_other_channels_is_named_whichever_task_meets_it(spark, store, tmp_path):
    with DatabaseWriter(tmp_path / "mixed") as writer:
        for row in range(40):
            pixels = np.full((200, 200, 3)[: 3 if row == 30 else 2], row, np.uint8)
            random = np.random.default_rng(row).integers(0, 256, (400, 400), dtype=np.uint8)
            encoded = pixel_png(pixels if row == 30 else random)
            writer.append(datum.write(data=encoded, label=0, encoded=True), "picture")
    data = Data(
        source="lmdb",
        path=str(tmp_path / "mixed"),
        validation_fraction=0.5,
        channels="stored",
        resize=(8, 8),
    )
    assert len(open_source(data).listed.partitions) > 1
    message = r"images have 1 channels like the first one, and row \d+ of partition \d \(00000030_picture\) has 3"
    with pytest.raises(DataError, match=message):
        prepare(spark, data, store=store, seed=0)


def test_partitions_of_images_of_different_sizes(spark, store, tmp_path):
    files = [png(random_rows(1, (3, 4, width))[0][0]) for width in (4, 4, 5, 5)]
    data = Data(source="parquet", path=photos(tmp_path / "p", files, [0, 1, 0, 1]), validation_fraction=0.5)
    with pytest.raises(DataError, match=r"\(3, 4, \d\) in one partition and \(3, 4, \d\) in another.*data.resize"):
        prepare(spark, data, store=store, seed=0)


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
def test_damaged_images_are_left_out_up_to_a_share(spark, store, tmp_path, keep, no_job):
    images, labels = random_rows(50, (3, 4, 4))
    files = [png(image) for image in images]
    bad = [0, 1, 24, 25, 49]  # the first rows of both files among them
    for row in bad:
        files[row] = files[row][:-15] if row % 2 else None
    path = photos(tmp_path / "p", files, labels)
    data = Data(source="parquet", path=path, validation_fraction=0.2, corrupt_share=0.1, keep=keep)
    directory, manifest = prepare(spark, data, store=store, seed=0)
    good = [row for row in range(50) if row not in bad]
    both = [rows_of(directory, manifest, split) for split in ("train", "validation")]
    assert sorted(as_set(*both[0]) + as_set(*both[1])) == as_set(images[good], labels[good])
    assert manifest.skipped == 5
    assert len(manifest.skipped_examples) == 5
    assert all(re.match(r"column image: row \d+ of partition \d: ", text) for text in manifest.skipped_examples)
    no_job()
    assert prepare(spark, replace(data, corrupt_share=0.2, threads=3, crop=2), store=store, seed=0)[1] == manifest
    with pytest.raises(
        DataError, match=r"5 of 50 rows are damaged, a share of 0.1; at most 0.05 may be. The first"
    ):
        prepare(spark, replace(data, corrupt_share=0.05), store=store, seed=0)


def test_too_many_damaged_images_leave_nothing(spark, store, tmp_path):
    images, labels = random_rows(50, (3, 4, 4))
    files = [png(image)[: 20 if row < 5 else None] for row, image in enumerate(images)]
    path = photos(tmp_path / "p", files, labels)
    data = Data(source="parquet", path=path, validation_fraction=0.2, corrupt_share=0.09)
    message = (
        r"5 of 50 rows are damaged, a share of 0.1; at most 0.09 may be. The first: .*row 0 of .*data.corrupt_s"
    )
    with pytest.raises(DataError, match=message) as raised:
        prepare(spark, data, store=store, seed=0)
    assert len(str(raised.value).splitlines()) == 1
    assert list(store.iterdir()) == []


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_damaged_images_alone(spark, store, tmp_path, share):
    path = photos(tmp_path / "p", [png(image)[:20] for image in random_rows(8, (3, 4, 4))[0]], [0, 1] * 4)
    data = Data(source="parquet", path=path, validation_fraction=0.5, corrupt_share=share)
    message = "8 of 8 rows are damaged, a share of 1;" if share < 1 else "the data have no whole rows"
    with pytest.raises(DataError, match=message):
        prepare(spark, data, store=store, seed=0)


def test_a_damaged_image_moves_no_other_row_between_the_splits(spark, store, tmp_path):
    images, labels = random_rows(80, (3, 4, 4))
    files = [png(image) for image in images]
    splits = []
    for name, spoiled in (("whole", []), ("damaged", [3, 4, 50])):
        for row in spoiled:
            files[row] = b"\x89PNG\r\n\x1a\n"
        # one file: Spark numbers partitions by the sizes of files
        path = write_parquet(tmp_path / name, {"image": files, "label": labels}, files=1)
        data = Data(source="parquet", path=path, validation_fraction=0.3, corrupt_share=0.1)
        directory, manifest = prepare(spark, data, store=store, seed=6)
        splits.append(set(as_set(*rows_of(directory, manifest, "validation"))))
    lost = {(images[row].tobytes(), int(labels[row])) for row in (3, 4, 50)}
    assert splits[1] == splits[0] - lost


def test_a_directory_of_images_with_damaged_files(spark, store, tmp_path):
    images, labels = random_rows(40, (3, 6, 5), classes=2)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = tmp_path / "photos" / ("cat", "dog")[label] / f"{row:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(image)[: 30 if row == 7 else None])
    data = Data(source="image_folder", path=str(tmp_path / "photos"), validation_fraction=0.25, corrupt_share=0.05)
    directory, manifest = prepare(spark, data, store=store, seed=0)
    both = [rows_of(directory, manifest, split) for split in ("train", "validation")]
    whole = np.arange(40) != 7
    assert sorted(as_set(*both[0]) + as_set(*both[1])) == as_set(images[whole], labels[whole])
    assert (manifest.rows.classes, manifest.skipped) == (2, 1)


SAME = {
    "mean": {"mean": "image"},
    "std": {"std": "channel"},
    "crop": {"crop": 3},
    "mirror": {"mirror": True},
    "scale": {"scale": 2.0},
    "threads": {"threads": 2},
    "share": {"corrupt_share": 0.5},
    "order in words": {"channel_order": "rgb"},
}
OTHER = {
    "resize": {"resize": (2, 2)},
    "mode": {"resize": (2, 2), "resize_mode": "shorter_side"},
    "order": {"channel_order": "bgr"},
    "channels": {"channels": "grey"},
    "channels as stored": {"channels": "stored"},
    "keep": {"keep": "encoded"},
    "features": {"features": ("a",)},
    "label": {"label": "other"},
    "header": {"header": False},
    "shape": {"shape": (3, 4, 4)},
    "shards": {"shard_megabytes": 1.0},
    "server": {"s3_endpoint": "http://localhost:1"},
}


BESIDE = {"mode": {"resize": (2, 2)}}
"""What is set in both, since the other goes with it."""


def digest_into(digests):
    """What takes the place of the preparation itself."""

    def prepared(task):
        digests.append(preparation._digest(task))
        return Part(directory="nowhere"), None

    return prepared


@pytest.mark.parametrize("case", [*SAME, *OTHER])
def test_what_decides_what_shards_hold_decides_the_fingerprint(spark, store, monkeypatch, case):
    digests = []
    monkeypatch.setattr(preparation, "_prepared", digest_into(digests))
    frame = spark.range(1)
    for keys in (BESIDE.get(case, {}), SAME.get(case) or OTHER[case]):
        prepare_frames(
            spark,
            Frames(train=frame),
            replace(Data(source="digits", validation_fraction=0.2), **keys),
            store=store,
            seed=0,
        )
    assert (digests[0] == digests[1]) == (case in SAME)


@pytest.mark.parametrize("keys", [{"channel_order": "bgr"}, {"keep": "encoded"}])
def test_a_table_is_not_prepared_again_for_what_is_said_of_images(spark, store, monkeypatch, keys):
    digests = []
    monkeypatch.setattr(preparation, "_prepared", digest_into(digests))
    table = Data(source="digits", validation_fraction=0.2, features=("id",))
    for data in (table, replace(table, **keys)):
        prepare_frames(spark, Frames(train=spark.range(1)), data, store=store, seed=0)
    assert digests[0] == digests[1]
