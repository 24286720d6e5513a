"""One task of the preparation, without Spark: rows go to the right shards, and the report is true."""

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from encoded import png
from formats import columns, random_rows
from sparknet.config import decode, encode
from sparknet.data.rows import reading as row_reading
from sparknet.data.rows.arrow_values import image_values
from sparknet.data.rows.column_plan import ColumnPlan
from sparknet.data.rows.columns import ImageForm
from sparknet.data.rows.damage import Damage
from sparknet.data.rows.reading import ReadPlan
from sparknet.data.shards.held_out import held_out
from sparknet.data.shards.shard_table import Shard, ShardTable
from sparknet.data.shards.statistics import Statistics
from sparknet.data.shards.write_partition import PartitionPlan, PartitionReport, write_partition
from sparknet.errors import DataError

SHAPE = (3, 2, 2)
LABELS = ColumnPlan(name="label", classes=10, number_shape=())


@pytest.fixture
def plan(tmp_path):
    return PartitionPlan(
        directory=str(tmp_path),
        rows=ReadPlan(columns=(ColumnPlan(name="image", shape=SHAPE), LABELS)),
        fraction=0.25,
        seed=4,
        shard_bytes=1 << 20,
    )


def reading(plan, *, fraction=None, shard_bytes=None, **rows):
    """The plan with another way of reading."""
    if "input" in rows:
        rows["columns"] = (rows.pop("input"), LABELS)
    own = {"fraction": fraction, "shard_bytes": shard_bytes}
    return replace(
        plan, rows=replace(plan.rows, **rows), **{key: value for key, value in own.items() if value is not None}
    )


def batches_of(images, labels, *, size, marks=None):
    for at in range(0, len(labels), size):
        part = slice(at, at + size)
        arrays = [pa.array([image.tobytes() for image in images[part]]), pa.array(labels[part])]
        if marks is not None:
            arrays.append(pa.array(marks[part]))
        yield pa.record_batch(arrays, names=["c0", "c1", "validation"][: len(arrays)])


def rows_of(plan, report, split, tmp_path):
    shards = [Shard(path=shard.name, rows=shard.rows) for shard in report.shards if shard.split == split]
    table = ShardTable(tmp_path, shards, report.columns)
    return table.slice(0, len(table))


@pytest.mark.parametrize("size", [7, 40, 1000])
def test_a_drawn_split(tmp_path, plan, size):
    images, labels = random_rows(100, SHAPE)
    report = write_partition(plan, batches_of(images, labels, size=size), partition=2)
    assert report.columns == (columns(SHAPE)[0], replace(columns(SHAPE)[1], classes=10))
    marks = held_out(4, partition=2, start=0, rows=100, fraction=0.25)
    for split, chosen in (("train", ~marks), ("validation", marks)):
        rows = rows_of(plan, report, split, tmp_path)
        np.testing.assert_array_equal(rows["image"], images[chosen])
        np.testing.assert_array_equal(rows["label"], labels[chosen])


def test_marked_rows_and_reports(tmp_path, plan):
    images, labels = random_rows(60, SHAPE)
    marks = np.arange(60) % 3 == 0
    plan = reading(plan, validation="held", fraction=0.0, shard_bytes=15 * 20)
    report = write_partition(plan, batches_of(images, labels, size=16, marks=marks), partition=1)
    assert [shard.split for shard in report.shards] == ["train"] * 3 + ["validation"] * 2
    assert [shard.rows for shard in report.shards] == [15, 15, 10, 15, 5]
    assert max(shard.classes[0] for shard in report.shards) == labels.max() + 1
    np.testing.assert_array_equal(rows_of(plan, report, "validation", tmp_path)["image"], images[marks])
    total = Statistics.load(tmp_path / report.sums, report.columns).sums["image"]
    np.testing.assert_array_equal(total.total, images[~marks].sum(axis=0, dtype=np.float64))
    np.testing.assert_allclose(total.channel_std, images[~marks].std(axis=(0, 2, 3)))
    assert report.damage == Damage()
    assert decode(PartitionReport, json.loads(json.dumps(encode(report)))) == report


def test_two_attempts_never_share_a_file(tmp_path, plan):
    rows = random_rows(20, SHAPE)
    first, second = (write_partition(plan, batches_of(*rows, size=20), partition=0) for _ in range(2))
    names = [shard.name for shard in first.shards + second.shards] + [first.sums, second.sums]
    assert len(set(names)) == len(names) == 6
    assert all((tmp_path / name).exists() for name in names)


def test_a_partition_without_rows(tmp_path, plan):
    empty = pa.record_batch([pa.array([], pa.binary()), pa.array([], pa.int64())], names=["c0", "c1"])
    assert write_partition(plan, [], partition=0) is None
    assert write_partition(plan, [empty], partition=0) is None
    assert list(tmp_path.iterdir()) == []


def test_rows_are_numbered_through_the_partition(plan):
    images, labels = random_rows(30, SHAPE)
    labels[25] = 10
    with pytest.raises(DataError, match="column label, partition 6: row 25 has label 10"):
        write_partition(plan, batches_of(images, labels, size=10), partition=6)


def test_a_store_that_cannot_be_written_names_the_host(tmp_path, plan):
    plan = replace(plan, directory=str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"gone: cannot be written from .*set data.store to a directory"):
        write_partition(plan, batches_of(*random_rows(5, SHAPE), size=5), partition=0)


IMAGES = ColumnPlan(name="image", form=ImageForm())


def image_batches(files, labels, *, size, errors=None):
    for at in range(0, len(labels), size):
        part = slice(at, at + size)
        arrays = {"c0": pa.array(files[part], pa.binary()), "c1": pa.array(labels[part], pa.int64())}
        if errors is not None:
            arrays["error"] = pa.array(errors[part], pa.string())
        yield pa.record_batch(arrays)


@pytest.fixture(params=["pixels", "encoded"])
def images_plan(request, plan):
    return reading(plan, input=replace(IMAGES, keep=request.param))


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("threads", [1, 3])
def test_damaged_images_are_left_out_and_others_stay_in_their_split(
    tmp_path, images_plan, size, threads, monkeypatch
):
    monkeypatch.setattr(row_reading, "_PIECE_ROWS", 5)
    plan = reading(images_plan, input=replace(images_plan.rows.columns[0], threads=threads))
    images, labels = random_rows(60, SHAPE)
    files = [png(image) for image in images]
    bad = [0, 1, 2, 17, 40, 59]
    for row in bad:
        files[row] = files[row][:-9] if row % 2 else None
    report = write_partition(plan, image_batches(files, labels, size=size), partition=3)
    good = np.ones(60, bool)
    good[bad] = False
    marks = held_out(4, partition=3, start=0, rows=60, fraction=0.25)
    for split, chosen in (("train", ~marks), ("validation", marks)):
        rows = rows_of(plan, report, split, tmp_path)
        np.testing.assert_array_equal(rows["image"], images[chosen & good])
        np.testing.assert_array_equal(rows["label"], labels[chosen & good])
    assert report.damage.rows == len(bad)
    named = [re.search(r"row (\d+) of partition 3", text).group(1) for text in report.damage.examples]
    assert named == [str(row) for row in bad]
    assert report.columns[0].image == (ImageForm() if plan.rows.columns[0].keep == "encoded" else None)
    total = Statistics.load(tmp_path / report.sums, report.columns).sums["image"]
    np.testing.assert_array_equal(total.total, images[~marks & good].sum(axis=0, dtype=np.float64))


def test_both_ways_to_keep_images_hold_the_same_rows(tmp_path, plan):
    random = np.random.default_rng(5)
    images = [random.integers(0, 256, (3, *random.integers(3, 9, 2)), dtype=np.uint8) for _ in range(40)]
    labels = np.arange(40) % 10
    form = ImageForm(order="bgr", resize_mode="shorter_side")
    kind = ColumnPlan(name="image", form=form, resize=(4, 5))
    rows = []
    for keep in ("pixels", "encoded"):
        asked = reading(plan, input=replace(kind, keep=keep))
        files = [png(image) for image in images]
        report = write_partition(asked, image_batches(files, labels, size=16), partition=0)
        assert report.columns[0].shape == (3, 4, 5)
        total = Statistics.load(tmp_path / report.sums, report.columns).sums["image"]
        rows.append([*rows_of(asked, report, "train", tmp_path).values(), total.total, total.channel_std])
    for pixels, encoded in zip(*rows, strict=True):
        np.testing.assert_array_equal(pixels, encoded)


def test_rows_with_an_error_are_left_out_whatever_the_input_is(tmp_path, plan):
    images, labels = random_rows(30, SHAPE)
    cells = [image.tobytes() for image in images]
    labels, errors = labels.tolist(), [None] * 30
    bad = [0, 9, 10, 11, 29]
    for row in bad:
        cells[row], labels[row], errors[row] = None, None, f"key {row:08d}: no Datum"
    batches = image_batches(cells, labels, size=10, errors=errors)
    report = write_partition(replace(plan, fraction=0.0), batches, partition=0)
    good = [row for row in range(30) if row not in bad]
    rows = rows_of(plan, report, "train", tmp_path)
    np.testing.assert_array_equal(rows["image"], images[good])
    assert rows["label"].tolist() == [labels[row] for row in good]
    assert report.damage == Damage(rows=5, examples=tuple(f"key {row:08d}: no Datum" for row in bad))


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.float32()])
def test_damaged_rows_of_numbers(tmp_path, plan, kind):
    cells = [None, 1.5, None, 2.5]
    values = cells if kind == pa.float32() else [cell and [cell, -cell] for cell in cells]
    batch = pa.record_batch(
        {
            "c0": pa.array(values, kind),
            "c1": pa.array([None, 1, None, 0], pa.int64()),
            "error": pa.array(["a", None, "b", None]),
        }
    )
    plan = reading(plan, input=ColumnPlan(name="x"), fraction=0.0)
    report = write_partition(plan, [batch], partition=0)
    assert report.damage == Damage(rows=2, examples=("a", "b"))
    assert rows_of(plan, report, "train", tmp_path)["x"][:, 0].tolist() == [1.5, 2.5]


def test_rows_between_damaged_ones_are_named_by_their_own_numbers(plan):
    cells, errors = [b"x" * 12] * 4, ["broken", None, "broken", None]
    cells[0] = cells[2] = None
    labels = [None, 3, None, 10]
    with pytest.raises(DataError, match="column label, partition 0: row 3 has label 10"):
        write_partition(plan, image_batches(cells, labels, size=4, errors=errors), partition=0)
    cells[3] = b"short"
    with pytest.raises(DataError, match="column image: row 3 of partition 0 has 5 values"):
        write_partition(plan, image_batches(cells, labels, size=4, errors=errors), partition=0)
    cells[3] = None
    with pytest.raises(DataError, match="column image: row 3 of partition 0 is null"):
        write_partition(plan, image_batches(cells, labels, size=4, errors=errors), partition=0)


def test_a_bad_label_of_a_whole_image_is_an_error(images_plan):
    images, labels = random_rows(5, SHAPE)
    files = [png(image) for image in images]
    files[1] = files[1][:20]
    labels[4] = -1
    with pytest.raises(DataError, match="row 4 has label -1"):
        write_partition(images_plan, image_batches(files, labels, size=5), partition=0)


@pytest.mark.parametrize("errors", [None, ["cut short"] * 12])
def test_a_partition_of_damaged_rows_alone_reports_them(tmp_path, images_plan, errors):
    files = [png(image)[:20] for image in random_rows(12, SHAPE)[0]]
    report = write_partition(images_plan, image_batches(files, [0] * 12, size=5, errors=errors), partition=7)
    assert (report.columns, report.shards, report.sums) == ((), (), "")
    assert report.damage.rows == 12
    assert len(report.damage.examples) == 10
    assert all(("cut short" if errors else "of partition 7") in text for text in report.damage.examples)
    assert list(tmp_path.iterdir()) == []
    assert decode(PartitionReport, json.loads(json.dumps(encode(report)))) == report


def test_images_are_decoded_in_pieces_of_bounded_memory(tmp_path, plan, monkeypatch):
    monkeypatch.setattr(row_reading, "_PIECE_BYTES", 3 * 12)
    monkeypatch.setattr(row_reading, "_PIECE_ROWS", 2)
    decoded = []
    monkeypatch.setattr(
        row_reading,
        "image_values",
        lambda array, **named: decoded.append(len(array)) or image_values(array, **named),
    )
    images, labels = random_rows(20, SHAPE)
    files = [png(image) for image in images]
    plan = reading(plan, input=IMAGES, fraction=0.0)
    report = write_partition(plan, image_batches(files, labels, size=10), partition=0)
    np.testing.assert_array_equal(rows_of(plan, report, "train", tmp_path)["image"], images)
    assert decoded == [2, 3, 3, 2, 3, 3, 3, 1]  # the first piece shows how large an image is


def test_damage_is_held_against_the_share():
    damage = Damage.of(f"row {row} is cut short" for row in range(25))
    assert damage.rows == 25
    assert damage.examples == tuple(f"row {row} is cut short" for row in range(10))
    damage.check(100, share=0.25)
    message = (
        r"^25 of 100 rows are damaged, a share of 0.25; at most 0.24 may be. The first: row 0 is cut short; "
        r"row 1 is cut short; row 2 is cut short: repair or remove them, or set data.corrupt_share"
    )
    with pytest.raises(DataError, match=message):
        damage.check(100, share=0.24)
    assert Damage() + damage == damage + Damage() == damage
    assert (damage + damage).rows == 50
    Damage().check(0, share=0.0)
    Damage().check(3, share=0.0)
    Damage(rows=29).check(100, share=0.29)  # 0.29 * 100 is less than 29
    Damage(rows=3, examples=("x",)).check(3, share=1.0)
    with pytest.raises(DataError, match=r"1 of 100 rows are damaged, a share of 0.01; at most 0 may be"):
        Damage(rows=1, examples=("x",)).check(100, share=0.0)
