"""What a run trains on: one data set, or several whose rows go together by their numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from a_manifest import MANIFEST
from formats import make_table
from sparknet.data.shards.manifest import Manifest
from sparknet.data.shards.prepared import JoinedTable, Part, PreparedData
from sparknet.data.shards.shard_table import Shard
from sparknet.errors import DataError

IMAGE, LABEL = MANIFEST.columns
SIZES = ([4, 3], [2, 2, 3])
"""Rows of the shards of two tables: equally many in all, and cut otherwise."""


@pytest.fixture
def joined(tmp_path: Path) -> tuple[JoinedTable, np.ndarray, np.ndarray]:
    """The images of one table beside those of another, under names of their own."""
    tables, images = [], []
    for number, sizes in enumerate(SIZES):
        directory = tmp_path / str(number)
        directory.mkdir()
        table, found, _ = make_table(directory, sizes, seed=number)
        tables.append(table)
        images.append(found)
    names = [{"image": "scan", "label": "label"}, {"image": "mask"}]
    return JoinedTable(tables, names), images[0], images[1]


def test_rows_go_together_however_the_shards_are_cut(joined: tuple[JoinedTable, np.ndarray, np.ndarray]) -> None:
    table, scans, masks = joined
    with table:
        assert len(table) == 7
        assert table.shard_rows == (4, 3)
        for rows in (np.array([6, 0, 3]), np.arange(7)):
            found = table.take(rows)
            assert list(found) == ["scan", "label", "mask"]
            np.testing.assert_array_equal(found["scan"], scans[rows])
            np.testing.assert_array_equal(found["mask"], masks[rows])
        part = table.slice(2, 6)
        np.testing.assert_array_equal(part["scan"], scans[2:6])
        np.testing.assert_array_equal(part["mask"], masks[2:6])


def of_two(second: Manifest) -> PreparedData:
    return PreparedData(
        parts=(
            Part(directory="/a", names={"image": "image", "label": "label"}),
            Part(directory="/b", names={"image": "depth"}),
        ),
        manifests=(MANIFEST, second),
        inputs=("image",),
        targets=("depth", "label"),
    )


def test_columns_have_the_names_of_the_run() -> None:
    rows = of_two(MANIFEST).rows
    assert [column.name for column in rows.columns] == ["image", "depth", "label"]
    assert rows.targets[0].shape == (3, 2, 2)
    assert rows.targets[0].name == "depth"
    stored, directory = of_two(MANIFEST).stored["depth"]
    assert (stored.channel_mean, directory.local) == ((1.5, 2.0, 0.25), Path("/b"))


def test_the_content_is_of_the_bytes_and_not_of_what_was_asked_for() -> None:
    data = of_two(MANIFEST)
    shards = tuple(replace(shard, sha256="ef" * 32) for shard in MANIFEST.train)
    held_out = tuple(replace(shard, sha256="ef" * 32) for shard in MANIFEST.validation)
    others = [of_two(replace(MANIFEST, train=shards)), of_two(replace(MANIFEST, validation=held_out))]
    assert {other.fingerprint for other in others} == {data.fingerprint}
    assert len({data.content, of_two(MANIFEST).content, *(other.content for other in others)}) == 3


def test_the_fingerprint_is_of_all() -> None:
    other = replace(MANIFEST, fingerprint="cd" * 32)
    assert of_two(other).fingerprint == f"{MANIFEST.fingerprint}+{other.fingerprint}"
    assert of_two(other).fingerprint != of_two(MANIFEST).fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train": (Shard(path="t", rows=6),), "columns": (IMAGE, replace(LABEL, counts=(3, 0, 3)))},
            r"data\.beside\.depth has 6 training and 2 validation rows, and the data beside it have 7 and 2",
        ),
        ({"validation": (Shard(path="v", rows=3),)}, "has 7 training and 3 validation rows"),
        (
            {"skipped": 1, "skipped_examples": ("row 3: no image",)},
            r"data\.beside\.depth: damaged rows would be left out \(row 3: no image\), and the rows behind them",
        ),
    ],
)
def test_rows_that_cannot_go_together(change: dict, message: str) -> None:
    of_two(MANIFEST).check()
    with pytest.raises(DataError, match=message):
        of_two(replace(MANIFEST, **change)).check()


def test_one_data_set_is_itself(tmp_path: Path) -> None:
    data = PreparedData.of(tmp_path, MANIFEST)
    assert data.rows == MANIFEST.rows
    assert (data.train_rows, data.validation_rows, data.fingerprint) == (7, 2, MANIFEST.fingerprint)
    data.check()
