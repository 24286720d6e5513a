"""One task of the preparation, without Spark: rows go to the right shards, and the report is true."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from formats import columns, random_rows
from sparknet.config import decode, encode
from sparknet.data import Shard, ShardTable
from sparknet.data.partition import PartitionPlan, ShardReport, write_partition
from sparknet.data.split import held_out
from sparknet.errors import DataError

SHAPE = (3, 2, 2)


@pytest.fixture
def plan(tmp_path):
    return PartitionPlan(
        directory=str(tmp_path),
        image="image",
        label="label",
        validation="",
        shape=SHAPE,
        classes=10,
        fraction=0.25,
        seed=4,
        shard_bytes=1 << 20,
    )


def batches_of(images, labels, *, size, marks=None):
    for at in range(0, len(labels), size):
        part = slice(at, at + size)
        arrays = [pa.array([image.tobytes() for image in images[part]]), pa.array(labels[part])]
        if marks is not None:
            arrays.append(pa.array(marks[part]))
        yield pa.record_batch(arrays, names=["input", "label", "validation"][: len(arrays)])


def rows_of(plan, reports, split, tmp_path):
    shards = [Shard(path=report.name, rows=sum(report.label_counts)) for report in reports if report.split == split]
    table = ShardTable(tmp_path, shards, columns(SHAPE))
    return table.slice(0, len(table))


@pytest.mark.parametrize("size", [7, 40, 1000])
def test_a_drawn_split(tmp_path, plan, size):
    images, labels = random_rows(100, SHAPE)
    reports = write_partition(plan, batches_of(images, labels, size=size), partition=2)
    marks = held_out(4, partition=2, start=0, rows=100, fraction=0.25)
    for split, chosen in (("train", ~marks), ("validation", marks)):
        rows = rows_of(plan, reports, split, tmp_path)
        np.testing.assert_array_equal(rows["image"], images[chosen])
        np.testing.assert_array_equal(rows["label"], labels[chosen])


def test_marked_rows_and_reports(tmp_path, plan):
    images, labels = random_rows(60, SHAPE)
    marks = np.arange(60) % 3 == 0
    plan = replace(plan, validation="held", fraction=0.0, shard_bytes=15 * 20)
    reports = write_partition(plan, batches_of(images, labels, size=16, marks=marks), partition=1)
    assert [report.split for report in reports] == ["train"] * 3 + ["validation"] * 2
    assert [sum(report.label_counts) for report in reports] == [15, 15, 10, 15, 5]
    np.testing.assert_array_equal(rows_of(plan, reports, "validation", tmp_path)["image"], images[marks])
    sums = np.load(tmp_path / reports[0].sums)
    np.testing.assert_array_equal(sums, images[~marks].sum(axis=0, dtype=np.float64))
    assert {report.sums for report in reports} == {reports[0].sums}
    for report in reports:
        assert decode(ShardReport, json.loads(json.dumps(encode(report)))) == report


def test_two_attempts_never_share_a_file(tmp_path, plan):
    rows = random_rows(20, SHAPE)
    first, second = (write_partition(plan, batches_of(*rows, size=20), partition=0) for _ in range(2))
    names = [report.name for report in first + second]
    assert len(set(names)) == len(names) == 4
    assert all((tmp_path / name).exists() for name in names)


def test_a_partition_without_rows(tmp_path, plan):
    empty = pa.record_batch([pa.array([], pa.binary()), pa.array([], pa.int64())], names=["input", "label"])
    assert write_partition(plan, [], partition=0) == []
    assert write_partition(plan, [empty], partition=0) == []
    assert list(tmp_path.iterdir()) == []


def test_rows_are_numbered_through_the_partition(plan):
    images, labels = random_rows(30, SHAPE)
    labels[25] = 10
    with pytest.raises(DataError, match="column label, partition 6: row 25 has label 10"):
        write_partition(plan, batches_of(images, labels, size=10), partition=6)


def test_a_store_that_cannot_be_written_names_the_host(tmp_path, plan):
    plan = replace(plan, directory=str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"gone: cannot be written from .*set data.store to a directory that every"):
        write_partition(plan, batches_of(*random_rows(5, SHAPE), size=5), partition=0)
