"""Shards: what is written is what is read, in any order, in place; damage is named."""

import functools
import operator
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoded import cells_of, encoded_columns, encoded_table, png
from formats import columns, make_table, random_rows
from sparknet.data.rows.columns import Column, ImageForm, batch_of, check_labels, schema_of
from sparknet.data.rows.image_codec import decode_into
from sparknet.data.shards.shard_table import Shard, ShardTable
from sparknet.data.shards.shard_writer import ShardWriter
from sparknet.errors import DataError


def write(directory, images, labels, *, shard_bytes=1 << 20, batch=7):
    writer = ShardWriter(
        directory,
        prefix="train",
        columns=columns(images.shape[1:], images.dtype.name),
        shard_bytes=shard_bytes,
    )
    for at in range(0, len(labels), batch):
        writer.append({"image": images[at : at + batch], "label": labels[at : at + batch]})
    return writer.close()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (6,), (1,)])
def test_rows_come_back_as_written(tmp_path, dtype, shape):
    images, labels = random_rows(50, shape)
    images = images.astype(dtype)
    written = write(tmp_path, images, labels, shard_bytes=20 * (images[0].nbytes + 8))
    assert [shard.statistics.rows for shard in written] == [20, 20, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train-0000.arrow",
        "train-0001.arrow",
        "train-0002.arrow",
    ]
    table = ShardTable(
        tmp_path,
        [Shard(path=shard.name, rows=shard.statistics.rows) for shard in written],
        columns(shape, dtype),
    )
    assert len(table) == 50
    assert table.shard_rows == (20, 20, 10)
    rows = table.slice(0, 50)
    assert rows["image"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(rows["image"], images)
    np.testing.assert_array_equal(rows["label"], labels)


def test_a_shard_holds_one_uncompressed_batch(tmp_path):
    images, labels = random_rows(30, (2, 2))
    write(tmp_path, images, labels)
    with pa.memory_map(str(tmp_path / "train-0000.arrow")) as source, pa.ipc.open_file(source) as reader:
        assert reader.num_record_batches == 1
        assert reader.schema == schema_of(columns((2, 2)))
    assert images.tobytes() in (tmp_path / "train-0000.arrow").read_bytes()


def test_a_row_larger_than_a_shard_gets_a_shard_of_its_own(tmp_path):
    assert len(write(tmp_path, *random_rows(3, (10, 10)), shard_bytes=10)) == 3


def test_a_writer_without_rows_writes_nothing(tmp_path):
    assert write(tmp_path, *random_rows(0, (2,))) == []
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, *random_rows(5, (2,)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_statistics_are_those_of_the_rows(tmp_path, dtype):
    images, labels = random_rows(100, (3, 4, 5), classes=6)
    images = images.astype(dtype)
    labels[labels == 0] = 1
    written = write(tmp_path, images, labels, shard_bytes=33 * (images[0].nbytes + 8))
    found = functools.reduce(operator.add, (shard.statistics for shard in written))
    total = found.sums["image"]
    assert (found.rows, total.rows) == (100, 100)
    np.testing.assert_array_equal(found.counts["label"], np.bincount(labels))
    np.testing.assert_array_equal(total.total, images.astype(np.float64).sum(axis=0))
    np.testing.assert_allclose(total.channel_mean, images.astype(np.float64).mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(total.mean_image, images.astype(np.float64).mean(axis=0), rtol=1e-6)
    assert total.mean_image.dtype == np.float32
    np.testing.assert_allclose(total.channel_std, images.astype(np.float64).std(axis=(0, 2, 3)))


def test_a_slice_within_a_shard_is_a_view_of_the_file(tmp_path):
    table, images, labels = make_table(tmp_path, [10, 5])
    rows = table.slice(2, 9)
    assert not rows["image"].flags.owndata
    assert not rows["image"].flags.writeable
    assert np.shares_memory(rows["image"], table.slice(0, 10)["image"])
    np.testing.assert_array_equal(rows["image"], images[2:9])
    np.testing.assert_array_equal(rows["label"], labels[2:9])


KINDS = {
    "small rows": lambda directory, sizes: make_table(directory, sizes, shape=(3, 2, 3)),
    "floats": lambda directory, sizes: make_table(directory, sizes, shape=(3, 2, 3), dtype="float32"),
    "large rows": lambda directory, sizes: make_table(directory, sizes, shape=(3, 40, 40)),
    "encoded": encoded_table,
    "encoded, threads": lambda directory, sizes: encoded_table(directory, sizes, threads=3),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_take_and_slice_agree_with_a_loop_over_rows(tmp_path_factory, kind, data):
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    table, images, labels = KINDS[kind](tmp_path_factory.mktemp("table"), sizes)
    wanted = data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=40))
    with table:
        check_rows(table, images, labels, wanted)
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, sum(sizes))] * 2)))
        piece = table.slice(start, stop)
    np.testing.assert_array_equal(piece["image"], images[start:stop])
    np.testing.assert_array_equal(piece["label"], labels[start:stop])
    assert piece["image"].dtype == images.dtype
    assert piece["image"].flags.c_contiguous


def check_rows(table, images, labels, wanted):
    got = table.take(np.array(wanted, np.int64))
    assert got["image"].shape == (len(wanted), *images.shape[1:])
    assert got["image"].dtype == images.dtype
    assert got["image"].flags.c_contiguous
    assert got["image"].flags.writeable
    for place, row in enumerate(wanted):
        np.testing.assert_array_equal(got["image"][place], images[row])
        assert got["label"][place] == labels[row]


def test_encoded_shards_hold_the_files(tmp_path):
    table, images, _ = encoded_table(tmp_path, [4, 3])
    for shard, first in zip(table._shards, (0, 4), strict=True):
        stored = (tmp_path / shard.path).read_bytes()
        assert all(png(image) in stored for image in images[first : first + shard.rows])
        with pa.memory_map(str(tmp_path / shard.path)) as source, pa.ipc.open_file(source) as reader:
            assert reader.num_record_batches == 1
            assert reader.schema == schema_of(encoded_columns((3, 2, 3)))


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_encoded_shards_are_closed_by_their_bytes(tmp_path, batch):
    images, labels = random_rows(20, (3, 4, 4))
    files = [png(image) for image in images]
    files[7] = png(images[7]) + bytes(2000)  # larger than a shard
    limit = 3 * (max(len(file) for file in files[:5]) + 8)
    writer = ShardWriter(tmp_path, prefix="e", columns=encoded_columns((3, 4, 4)), shard_bytes=limit)
    for at in range(0, 20, batch):
        part = slice(at, at + batch)
        writer.append({"image": images[part], "label": labels[part]}, {"image": cells_of(files[part])})
    written = writer.close()
    rows = [shard.statistics.rows for shard in written]
    assert (sum(rows), rows[:3]) == (20, [3, 3, 1])
    ends = np.cumsum(rows)
    for shard, end in zip(written, ends, strict=True):
        held = files[end - shard.statistics.rows : end]
        assert sum(map(len, held)) + 8 * len(held) <= limit or len(held) == 1
    total = functools.reduce(operator.add, (shard.statistics for shard in written)).sums["image"]
    np.testing.assert_array_equal(total.total, images.sum(axis=0, dtype=np.float64))
    table = ShardTable(
        tmp_path,
        [Shard(path=shard.name, rows=shard.statistics.rows) for shard in written],
        encoded_columns((3, 4, 4)),
    )
    np.testing.assert_array_equal(table.slice(0, 20)["image"], images)


def test_encoded_images_are_scaled_and_ordered_as_the_column_says(tmp_path):
    image = random_rows(1, (3, 6, 9))[0][0]
    form = ImageForm(order="bgr", resize_mode="shorter_side")
    columns = encoded_columns((3, 4, 4), form)
    writer = ShardWriter(tmp_path, prefix="e", columns=columns, shard_bytes=1 << 20)
    wanted = np.empty((3, 4, 4), np.uint8)
    decode_into(wanted, png(image), form=form)
    writer.append({"image": wanted[None], "label": np.zeros(1, np.int64)}, {"image": cells_of([png(image)])})
    shards = [Shard(path=shard.name, rows=1) for shard in writer.close()]
    got = ShardTable(tmp_path, shards, columns).take(np.array([0]))["image"][0]
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("threads", [1, 4])
def test_an_image_that_is_damaged_later_names_shard_and_row(tmp_path, threads):
    table, images, _ = encoded_table(tmp_path, [4, 5], threads=threads)
    path = tmp_path / table._shards[1].path
    stored, file = path.read_bytes(), png(images[6])
    path.write_bytes(stored.replace(file, b"\0" * len(file)))
    with table, pytest.raises(DataError, match=r"e1-0000.arrow: row 2 was an image .*prepare the data again"):
        table.take(np.array([0, 8, 6, 1]))


def test_threads_decode_and_end_with_the_table(tmp_path):
    table, images, _ = encoded_table(tmp_path, [30], threads=3)

    def decoders():
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("sparknet-decode")}

    assert not decoders()
    np.testing.assert_array_equal(table.slice(0, 30)["image"], images)
    assert 1 <= len(decoders()) <= 3
    table.close()
    assert not decoders()
    np.testing.assert_array_equal(table.take(np.arange(30))["image"], images)  # new ones
    table.close()
    table.close()


def test_several_threads_may_read_one_table(tmp_path):
    table, images, labels = encoded_table(tmp_path, [9, 9, 9], threads=2)
    wanted = [np.random.default_rng(seed).integers(0, 27, 20) for seed in range(8)]
    with table, ThreadPoolExecutor(4) as pool:
        for rows, got in zip(wanted, pool.map(table.take, wanted), strict=True):
            np.testing.assert_array_equal(got["image"], images[rows])
            np.testing.assert_array_equal(got["label"], labels[rows])


def test_rows_outside_the_table(tmp_path):
    table, _, _ = make_table(tmp_path, [4])
    for rows in ([-1], [4], [0, 9]):
        with pytest.raises(IndexError, match="of a table of 4 rows"):
            table.take(np.array(rows))
    for start, stop in ((-1, 2), (0, 5), (3, 2)):
        with pytest.raises(IndexError, match=f"rows {start}..{stop} of a table of 4 rows"):
            table.slice(start, stop)


def test_a_table_without_shards():
    table = ShardTable("nowhere", [], columns((2,)))
    assert len(table) == 0
    assert table.take(np.zeros(0, np.int64))["image"].shape == (0, 2)


def test_files_are_opened_when_touched_and_hold_no_file_handle(tmp_path):
    table, _, _ = make_table(tmp_path, [2, 2, 2])
    (tmp_path / table._shards[2].path).unlink()
    handles = Path("/proc/self/fd")
    before = len(list(handles.iterdir()))
    assert len(table.take(np.arange(4))["label"]) == 4
    assert len(list(handles.iterdir())) == before


def test_a_missing_shard(tmp_path):
    table, _, _ = make_table(tmp_path, [2, 2])
    (tmp_path / table._shards[1].path).unlink()
    with pytest.raises(DataError, match=r"s1-0000.arrow: the shard is missing; restore it or delete"):
        table.verify()


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -20])
def test_a_truncated_shard(tmp_path, keep):
    table, _, _ = make_table(tmp_path, [50])
    path = tmp_path / table._shards[0].path
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"s0-0000.arrow: the shard is damaged: .*prepare the data again"):
        table.take(np.array([0]))


def test_a_shard_with_other_rows_or_columns(tmp_path):
    table, _, _ = make_table(tmp_path, [5])
    name = table._shards[0].path
    with pytest.raises(DataError, match=r"batches of \[5\] rows; the manifest says one of 6"):
        ShardTable(tmp_path, [Shard(path=name, rows=6)], columns((2, 3))).verify()
    with pytest.raises(DataError, match=r"columns are .*\[6\].*; the manifest says .*\[7\]"):
        ShardTable(tmp_path, [Shard(path=name, rows=5)], columns((7,))).verify()


def test_columns_map_to_arrow_and_back():
    image, label = columns((2, 3), "float32")
    assert (image.width, image.row_bytes, label.width, label.row_bytes) == (6, 24, 1, 8)
    values = {"image": np.arange(12, dtype=np.float32).reshape(2, 2, 3), "label": np.array([4, 5])}
    batch = batch_of((image, label), values)
    np.testing.assert_array_equal(image.to_numpy(batch.column(0)), values["image"])
    np.testing.assert_array_equal(image.to_numpy(batch.slice(1).column(0)), values["image"][1:])
    assert np.shares_memory(image.to_numpy(batch.column(0)), values["image"])
    assert label.to_numpy(batch.column(1)).tolist() == [4, 5]
    assert Column(name="x", dtype="uint8", shape=(1,)).arrow_type.list_size == 1


@pytest.mark.parametrize("bad", [-1, 3])
def test_labels_outside_the_classes_name_the_row(bad):
    with pytest.raises(DataError, match=rf"f.bin: row 12 has label {bad}; labels must be 0 to 2 for 3 classes"):
        check_labels(np.array([0, 2, bad, 9]), classes=3, where="f.bin", first_row=10)
    check_labels(np.zeros(0, np.int64), classes=3, where="f.bin", first_row=0)
