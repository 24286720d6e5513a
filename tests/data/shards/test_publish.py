"""Shards of several tasks become one data set, without Spark."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from sparknet.config import Data
from sparknet.data.rows.column_plan import ColumnPlan
from sparknet.data.rows.damage import Damage
from sparknet.data.rows.reading import ReadPlan
from sparknet.data.rows.table_encoding import Category, TableEncoding
from sparknet.data.shards.manifest import Manifest
from sparknet.data.shards.publish import Origin, assemble, discard, publish
from sparknet.data.shards.write_partition import PartitionPlan, write_partition
from sparknet.errors import DataError

DATA = Data(source="parquet", path="/rows", validation_column="held")
ORIGIN = Origin(source={"source": "parquet"}, fingerprint="f" * 64, seed=3, table=None)


def partition(directory, number, labels, *, width=4, held=(0,)):
    """Write rows whose values are their label; those at the places `held` are marked."""
    plan = PartitionPlan(
        directory=str(directory),
        rows=ReadPlan(
            columns=(ColumnPlan(name="image"), ColumnPlan(name="label", classes=0, number_shape=())),
            validation="held",
        ),
        fraction=0.0,
        seed=0,
        shard_bytes=60,
    )
    rows = pa.record_batch(
        {
            "c0": pa.array([[float(label)] * width for label in labels], pa.list_(pa.float32())),
            "c1": pa.array(labels, pa.int64()),
            "validation": [place in held for place in range(len(labels))],
        }
    )
    return write_partition(plan, [rows], partition=number)


def test_shards_are_named_counted_and_alone(tmp_path):
    reports = [partition(tmp_path, 0, [0, 1, 1, 4]), partition(tmp_path, 2, [5, 2, 2])]
    (tmp_path / "train-00001-of-a-failed-attempt.arrow").write_bytes(b"half")
    assemble(tmp_path, reports, DATA, origin=ORIGIN)
    manifest = Manifest.load(tmp_path)
    named = {shard.path for shard in (*manifest.train, *manifest.validation)}
    assert {path.name for path in tmp_path.iterdir()} == named | {"manifest.json", "mean-0.npy"}
    with manifest.train_table(tmp_path) as train, manifest.validation_table(tmp_path) as held:
        assert train.slice(0, len(train))["label"].tolist() == [1, 1, 4, 2, 2]
        assert held.slice(0, len(held))["label"].tolist() == [0, 5]
    image, label = manifest.columns
    assert (label.column.classes, label.counts) == (6, (0, 2, 2, 0, 1, 0))
    assert image.channel_mean == (2.0,) * 4
    assert image.channel_std == pytest.approx([np.sqrt(6 / 5)] * 4)
    assert np.array_equal(image.load_mean_image(tmp_path), np.full(4, 2, np.float32))
    assert (manifest.fingerprint, manifest.seed, manifest.skipped) == ("f" * 64, 3, 0)


def test_words_and_settings_say_how_many_classes_there_are(tmp_path):
    table = TableEncoding(categories={"label": Category(words=("a", "b", "c"))})
    for number, (data, origin, classes) in enumerate(
        [(DATA, replace(ORIGIN, table=table), 3), (replace(DATA, classes=7), ORIGIN, 7)]
    ):
        directory = tmp_path / str(number)
        directory.mkdir()
        assemble(directory, [partition(directory, 0, [0, 1])], data, origin=origin)
        assert Manifest.load(directory).rows.classes == classes


def damaged(report, rows):
    return replace(report, damage=Damage(rows=rows, examples=("row 1 is cut short",)))


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        (lambda at: [], "the data have no rows; training needs at least one"),
        (
            lambda at: [damaged(partition(at, 0, [0, 1, 1, 1]), 1)],
            r"1 of 5 rows are damaged, a share of 0\.2; at most 0\.1 may be\. The first: row 1 is cut short",
        ),
        (
            lambda at: [partition(at, 0, [0, 1]), partition(at, 1, [0, 1], width=5)],
            r"rows of shape \(4,\) in one partition and \(5,\) in another",
        ),
        (lambda at: [partition(at, 0, [0, 1], held=())], "validation set is empty; no row has held = true"),
        (lambda at: [partition(at, 0, [0, 1], held=(0, 1))], "train set is empty; no row has held = false"),
    ],
)
def test_reports_that_make_no_data_set(tmp_path, reports, message):
    with pytest.raises(DataError, match=message):
        assemble(tmp_path, reports(tmp_path), replace(DATA, corrupt_share=0.1), origin=ORIGIN)
    assert not (tmp_path / "manifest.json").exists()


def test_shards_that_are_not_seen_on_the_driver(tmp_path):
    report = partition(tmp_path, 0, [0, 1, 2])
    for shard in tmp_path.glob("train*"):
        shard.unlink()
    with pytest.raises(DataError, match=r"was written by a worker but is not seen here; .*set data\.store"):
        assemble(tmp_path, [report], DATA, origin=ORIGIN)


def test_who_publishes_second_leaves_the_first_as_it_is(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        publish(tmp_path / name, tmp_path / "published")
        discard(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["published"]
    assert (tmp_path / "published" / "file").read_text() == "first"
