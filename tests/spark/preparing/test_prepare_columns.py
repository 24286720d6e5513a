"""Rows of many columns, from a table to shards: each in its form, with its classes and statistics beside it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from encoded import png
from prepared import open_prepare_session, write_parquet
from sparknet.config import Data, DataColumn
from sparknet.data.shards.manifest import Manifest
from sparknet.errors import DataError
from sparknet.spark.preparing.prepare import prepare

pytestmark = pytest.mark.spark

ROWS = 24
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, 3, 4, 5), np.uint8)
LENGTHS = np.arange(ROWS) % 4
TOKENS = [[row, row + 1, row + 2][:length] for row, length in enumerate(LENGTHS)]
SOFT = np.random.default_rng(1).dirichlet(np.ones(3), ROWS).astype(np.float32)
WORDS = ["no", "maybe", "yes"]
TABLE = {
    "row": pa.array(np.arange(ROWS), pa.int32()),
    "scan": [png(image) for image in PIXELS],
    "tokens": pa.array(TOKENS, pa.list_(pa.int32())),
    "age": pa.array(np.arange(ROWS) / 4, pa.float64()),
    "grid": pa.array(np.arange(ROWS * 4).reshape(ROWS, 2, 2).tolist(), pa.list_(pa.list_(pa.float64()))),
    "diagnosis": [WORDS[row % 3] for row in range(ROWS)],
    "stage": pa.array([float(2 + row % 5) for row in range(ROWS)], pa.float64()),
    "sign": pa.array([(-1) ** row for row in range(ROWS)], pa.int8()),
    "days": pa.array(np.arange(ROWS) * 10, pa.int64()),
    "soft": pa.array(SOFT.tolist(), pa.list_(pa.float64())),
    "certainty": pa.array(np.linspace(0, 2, ROWS), pa.float64()),
    "held_out": np.arange(ROWS) % 6 == 0,
}
DATA = Data(
    source="parquet",
    validation_column="held_out",
    inputs=("scan", "tokens", "age", "grid"),
    targets=("diagnosis", "stage", "sign", "days", "soft"),
    weight="certainty",
    columns={
        "tokens": DataColumn(kind="ids", length=3, pad=-1.0),
        "days": DataColumn(kind="number"),
    },
)


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    session = open_prepare_session("test_prepare_columns")
    yield session
    session.stop()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_parquet(tmp_path_factory.mktemp("table") / "t", TABLE)


@pytest.fixture(scope="module")
def prepared(spark: SparkSession, path: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    return prepare(spark, replace(DATA, path=path), store=tmp_path_factory.mktemp("store"), seed=1)


def rows_in_order(prepared: tuple[Path, Manifest], split: str) -> dict[str, np.ndarray]:
    """All rows of a split, by age, which grows with their number."""
    directory, manifest = prepared
    table = manifest.train_table(directory) if split == "train" else manifest.validation_table(directory)
    rows = table.slice(0, len(table))
    order = rows["age"][:, 0].argsort()
    return {name: np.array(values)[order] for name, values in rows.items()}


def test_what_the_columns_are(prepared: tuple[Path, Manifest]) -> None:
    rows = prepared[1].rows
    assert [(one.name, one.dtype, one.shape, one.classes) for one in rows.columns] == [
        ("scan", "uint8", (3, 4, 5), None),
        ("tokens", "int64", (3,), None),
        ("age", "float32", (1,), None),
        ("grid", "float32", (2, 2), None),
        ("diagnosis", "int64", (), 3),
        ("stage", "int64", (), 5),
        ("sign", "int64", (), 2),
        ("days", "float32", (), None),
        ("soft", "float32", (3,), None),
        ("certainty", "float32", (), None),
    ]
    assert (len(rows.inputs), len(rows.targets), rows.weight) == (4, 5, "certainty")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_cell_is_where_it_belongs(prepared: tuple[Path, Manifest], split: str) -> None:
    found = rows_in_order(prepared, split)
    number = np.arange(ROWS)[(np.arange(ROWS) % 6 == 0) == (split == "validation")]
    padded = np.array([[*TOKENS[row], -1, -1, -1][:3] for row in number])
    grid = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 2, 2)
    for name, expected in {
        "scan": PIXELS[number],
        "tokens": padded,
        "age": (number / 4).astype(np.float32)[:, None],
        "grid": grid[number],
        # In alphabetical order: maybe, no, yes.
        "diagnosis": np.array([[1, 0, 2][row % 3] for row in number]),
        "stage": number % 5,
        "sign": 1 - number % 2,
        "days": (number * 10).astype(np.float32),
        "soft": SOFT[number],
        "certainty": np.linspace(0, 2, ROWS).astype(np.float32)[number],
    }.items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
        assert found[name].dtype == expected.dtype


def test_classes_keep_what_they_stood_for(prepared: tuple[Path, Manifest]) -> None:
    table = prepared[1].table
    assert table is not None
    assert {name: category.names for name, category in table.categories.items()} == {
        "diagnosis": ("maybe", "no", "yes"),
        "stage": ("2", "3", "4", "5", "6"),
        "sign": ("-1", "1"),
    }


def test_means_are_of_the_training_rows(prepared: tuple[Path, Manifest]) -> None:
    trained = PIXELS[np.arange(ROWS) % 6 != 0]
    scan = prepared[1].stored("scan")
    np.testing.assert_allclose(scan.channel_mean, trained.mean(axis=(0, 2, 3)))
    ages = (np.arange(ROWS) / 4)[np.arange(ROWS) % 6 != 0]
    np.testing.assert_allclose(prepared[1].stored("age").channel_mean, [ages.mean()])


REFUSED = [
    ({"weight": "sign"}, r"column sign: row 1 of partition \d is -1; the weight of a row must be at least 0"),
    ({"weight": "diagnosis"}, r"column diagnosis is string; a weight must be a number"),
    ({"targets": ("soft",), "inputs": ("nothing",)}, r"column nothing is not in the data, which has row, scan"),
    (
        {"columns": {"tokens": DataColumn(kind="ids", length=1)}},
        r"column tokens: row \d+ of partition \d has [23] values; length 1 takes no more",
    ),
    ({"columns": {}}, r"column tokens: row 0 of partition \d is empty; every row needs a value"),
    (
        {"columns": DATA.columns | {"age": DataColumn(kind="ids", length=2)}},
        r"column age is double; ids of int64 must be an array of whole numbers: convert it",
    ),
    (
        {"columns": DATA.columns | {"scan": DataColumn(kind="number")}},
        r"column scan is binary, and data\.columns\.scan\.kind is 'number': convert the column",
    ),
    (
        {"columns": DATA.columns | {"stage": DataColumn(kind="category", classes=4)}},
        r"column stage",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_a_column_cannot_be(
    spark: SparkSession, path: str, tmp_path: Path, change: dict, message: str
) -> None:
    weight = change.get("weight", DATA.weight)
    targets = tuple(name for name in change.get("targets", DATA.targets) if name != weight)
    columns = change.get("columns", DATA.columns)
    used = {*change.get("inputs", DATA.inputs), *targets, weight}
    columns = {name: column for name, column in columns.items() if name in used}
    data = replace(DATA, path=path, **{**change, "targets": targets, "columns": columns})
    with pytest.raises(DataError, match=message):
        prepare(spark, data, store=tmp_path, seed=1)
    assert list(tmp_path.iterdir()) == []
