"""Columns of every kind that Spark users have, brought into the one form of the shards; and what is refused."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image
from pyspark.ml.linalg import Vectors
from pyspark.mllib.linalg import Vectors as OldVectors
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparknet.config import Data, DataColumn
from sparknet.data.rows.table_encoding import TableEncoding
from sparknet.errors import DataError
from sparknet.spark.frames.select_columns import select_columns
from sparknet.spark.jobs.jobs import collect_reports

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark():
    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master("local[2]")
        .appName("test_frames")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


def data(image="x", **settings):
    settings = {"label": "y", "validation_fraction": 0.5, **settings}
    return Data(source="parquet", path="unused", image=image, **settings)


def cells(frame, name="c0"):
    return [getattr(row, name) for row in frame.collect()]


@pytest.fixture(scope="module")
def rows(spark):
    """One row in each kind of column, twice."""
    frame = spark.createDataFrame(
        [
            (b"\x01\x02", Vectors.dense([1.0, 2.5]), [[1, 2], [3, 4]], 0.5, True, 1, "a"),
            (b"\x03\x04", Vectors.sparse(2, [1], [3.5]), [[5, 6], [7, 8]], 1.5, False, 0, "b"),
        ],
        ["bytes", "vector", "nested", "number", "flag", "y", "word"],
    )
    return frame.withColumn("flags", F.array("flag", F.lit(True))).withColumn(
        "cube", F.array("nested", F.array_sort("nested"))
    )


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        ("bytes", "binary", [b"\x01\x02", b"\x03\x04"]),
        ("vector", "array<float>", [[1.0, 2.5], [0.0, 3.5]]),
        # with their nesting, so that rows of 2 x 3 are told from rows of 3 x 2
        ("nested", "array<array<float>>", [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]),
        ("cube", "array<array<array<float>>>", [[[[1, 2], [3, 4]]] * 2, [[[5, 6], [7, 8]]] * 2]),
        ("flags", "array<float>", [[1, 1], [0, 1]]),
        ("number", "float", [0.5, 1.5]),
        ("flag", "float", [1.0, 0.0]),
    ],
)
def test_every_kind_of_input(rows, image, kind, expected):
    selected = select_columns(rows, data(image), validation=None)
    assert selected.dtypes == [("c0", kind), ("c1", "bigint")]
    assert cells(selected) == expected
    assert cells(selected, "c1") == [1, 0]


def test_vectors_of_the_older_library(spark):
    frame = spark.createDataFrame(
        [(OldVectors.dense([1.0, 2.0]), 0), (OldVectors.sparse(2, {0: 4.0}), 1)], ["x", "y"]
    )
    assert cells(select_columns(frame, data(), validation=None)) == [[1, 2], [4, 0]]


def test_images_as_spark_reads_them_pass_as_they_are(spark, tmp_path):
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    frame = spark.read.format("image").load(str(tmp_path)).withColumn("y", F.lit(1))
    selected = select_columns(frame, data("image"), validation=None)
    assert selected.schema["c0"].dataType == frame.schema["image"].dataType
    found = {image.origin.rsplit("/", 1)[-1]: image for image in cells(selected)}
    assert bytes(found["a.png"].data) == pixels[:, :, ::-1].tobytes()  # as OpenCV has it: BGR
    assert (found["b.png"].height, bytes(found["b.png"].data)) == (-1, b"")


def test_files_of_sparks_binary_reader(spark, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 3)).save(file, "JPEG")
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    frame = spark.read.format("binaryFile").load(str(tmp_path)).withColumn("y", F.length("content") % 2)
    assert cells(select_columns(frame, data("content"), validation=None)) == [file.getvalue()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "absent"}, r"column absent is not in the data, which has bytes, vector, .*: set data.image"),
        ({"image": "word"}, r"column word is string; the input must be binary, an array or vector of numbers, a"),
        ({"image": "words"}, r"column words is array<string>; the input must be"),
        ({"image": "when"}, r"column when is timestamp; the input must be .*: convert it, set data.image"),
        ({"image": "bytes", "label": "absent"}, r"column absent is not in the data.*: set data.label"),
        ({"image": "vector", "weight": "word"}, r"column word is string; a weight must be a number"),
        (
            {"image": "bytes", "columns": {"bytes": DataColumn(kind="ids")}},
            r"column bytes is binary; ids of int64 must be an array of whole numbers",
        ),
        (
            {"image": "number", "columns": {"number": DataColumn(kind="image")}},
            r"column number is double, and data\.columns\.number\.kind is 'image'",
        ),
        (
            {"image": "bytes", "validation_column": "y", "validation_fraction": 0},
            r"column y is bigint; it must be ",
        ),
        (
            {"image": "bytes", "label": "word"},
            r"column word is string; the label must be an integer, or ",
        ),
        ({"features": ("number", "word"), "image": "image"}, r"column word is string, and how training encoded it"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_job(rows, settings, message):
    frame = rows.withColumn("words", F.array("word")).withColumn("when", F.current_timestamp())
    with pytest.raises(DataError, match=message):
        select_columns(frame, data(**settings), validation=None)


def test_several_columns_come_in_the_order_of_inputs_targets_and_weight(rows):
    asked = Data(
        source="parquet",
        path="unused",
        inputs=("nested", "flag"),
        targets=("number", "vector", "nested"),
        weight="y",
        columns={"nested": DataColumn(kind="array", dtype="int64")},
        validation_fraction=0.5,
    )
    selected = select_columns(rows, asked, validation=None)
    kinds = ["array<array<bigint>>", "float", "float", "array<float>", "float"]
    assert selected.dtypes == [(f"c{at}", kind) for at, kind in enumerate(kinds)]
    assert tuple(selected.first()) == ([[1, 2], [3, 4]], 1.0, 0.5, [1.0, 2.5], 1.0)


def test_a_column_that_is_there_twice_is_refused(rows):
    twice = rows.select("bytes", "y", F.col("number").alias("y"))
    with pytest.raises(DataError, match="column y is 2 times in the data"):
        select_columns(twice, data("bytes"), validation=None)


def test_names_with_dots_and_quotes(spark):
    frame = spark.createDataFrame([(1.0, 2.0, 3)], ["a.b", "c`d", "y.z"])
    chosen = data(image="image", features=("a.b", "c`d"), label="y.z")
    assert cells(select_columns(frame, chosen, validation=None)) == [[1, 2]]
    assert cells(select_columns(frame, data("a.b", label="y.z"), validation=None)) == [1]


def test_a_boolean_label_is_0_or_1(rows):
    assert cells(select_columns(rows, data("bytes", label="flag"), validation=None), "c1") == [1, 0]


def test_marks_come_last(rows):
    marked = data("bytes", validation_column="flag", validation_fraction=0)
    selected = select_columns(rows, marked, validation=None)
    assert selected.columns == ["c0", "c1", "validation"]
    assert cells(selected, "validation") == [True, False]


def test_a_second_source_is_marked(rows):
    second = data("vector", validation_path="other", validation_fraction=0)
    selected = select_columns(rows, second, validation=rows.limit(1))
    assert selected.dtypes == [("c0", "array<float>"), ("c1", "bigint"), ("validation", "boolean")]
    assert cells(selected, "validation") == [False, False, True]
    assert cells(selected)[2] == [1.0, 2.5]


def test_both_sources_must_be_of_one_kind(rows):
    other = rows.withColumn("bytes", F.col("number"))
    second = data("bytes", validation_path="other", validation_fraction=0)
    with pytest.raises(
        DataError, match="column bytes is binary in training and float in validation rows; both must"
    ):
        select_columns(rows, second, validation=other)


def test_damage_is_passed_on_from_the_sources_that_know_it(spark):
    frame = spark.createDataFrame(
        [(b"\x01", 1, None), (None, None, "b.jpg: torn")], "x binary, y int, error string"
    )
    told = Data(source="image_tar", path="t", image="x", label="y", validation_path="v")
    selected = select_columns(frame, told, validation=frame)
    assert selected.columns == ["c0", "c1", "validation", "error"]
    assert cells(selected, "error") == [None, "b.jpg: torn"] * 2
    # a user's own column of that name is nobody's damage
    assert select_columns(frame, data(), validation=None).columns == ["c0", "c1"]


@pytest.mark.parametrize(("image", "kind"), [("bytes", "binary"), ("vector", "list<item: float not null>")])
def test_what_reaches_python(rows, image, kind):
    def types(batches):
        for batch in batches:
            yield {"type": str(batch.schema.field("c0").type), "rows": batch.num_rows}

    selected = select_columns(rows, data(image), validation=None, table=TableEncoding())
    reports = collect_reports(selected, types, doing="looking")
    assert sum(report.values["rows"] for report in reports) == 2
    # what Arrow calls the values of a list depends on Spark's version
    assert {report.values["type"].replace("element", "item") for report in reports} == {kind}


def test_columns_that_differ_in_case_alone(spark):
    frame = spark.createDataFrame([(1.0, 2.0, 0)], "x double, X double, y int")
    with pytest.raises(DataError, match="columns x and X differ in the case of letters alone"):
        select_columns(frame, data("x"), validation=None)
