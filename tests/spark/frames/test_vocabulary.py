"""Tables of numbers and words: what is learned of the training rows, and how rows are put together with it."""

import os
import sys

import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from opened import rows_at
from sparknet.config import Data, DataColumn
from sparknet.data.rows.table_encoding import Category, Feature, TableEncoding
from sparknet.data.shards.manifest import Manifest
from sparknet.errors import DataError
from sparknet.spark.frames import vocabulary
from sparknet.spark.frames.select_columns import select_columns
from sparknet.spark.frames.vocabulary import learn
from sparknet.spark.preparing.prepare import prepare

pytestmark = pytest.mark.spark

PEOPLE = """\
39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40, United-States, <=50K
50, Self-emp-not-inc, 83311, Bachelors, 13, Married-civ-spouse, Exec-managerial, Husband, White, Male, 0, 0, 13, United-States, <=50K
38, Private, 215646, HS-grad, 9, Divorced, Handlers-cleaners, Not-in-family, White, Male, 0, 0, 40, United-States, >50K
53, ?, 234721, 11th, 7, Married-civ-spouse, ?, Husband, Black, Male, 0, 0, 40, ?, <=50K
28, Private, 338409, Bachelors, 13, Married-civ-spouse, Prof-specialty, Wife, Black, Female, 0, 0, 40, Cuba, >50K

"""  # noqa: E501 - the file has long lines
WORK = ("?", "Private", "Self-emp-not-inc", "State-gov")


@pytest.fixture(scope="module")
def spark():
    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master("local[2]")
        .appName("test_tables")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")  # these tests provoke failures
    yield session
    session.stop()


@pytest.fixture(scope="module")
def adult(tmp_path_factory):
    """A file as the UCI repository has it: no header, ', ' between the columns, an empty line at the end."""
    path = tmp_path_factory.mktemp("adult") / "adult.data"
    path.write_text(PEOPLE)
    return path


def csv(path, *features, **settings):
    settings = {"label": "_c14", "validation_fraction": 0.2, "header": False, **settings}
    return Data(source="csv", path=str(path), features=features, **settings)


def table(*features, **settings):
    settings = {"label": "y", "validation_fraction": 0.5, **settings}
    return Data(source="parquet", path="unused", features=features, **settings)


def rows_of(frame):
    rows = frame.collect()
    if "fault" in frame.columns:
        for row in rows:
            if row.fault is not None:
                raise DataError(row.fault)
    return [(list(row.c0), row.c1) for row in rows]


def test_adult_as_it_is(spark, adult):
    data = csv(adult, "*")
    frame = rows_at(spark, data, validation=False)
    encoding = learn(frame, data)
    assert encoding is not None
    assert [feature.name for feature in encoding.features] == [f"_c{number}" for number in range(14)]
    assert encoding.features[0] == Feature(name="_c0")
    assert encoding.features[1] == Feature(name="_c1", words=WORK, width=4)
    assert encoding.categories["_c14"].words == ("<=50K", ">50K")
    # six columns of numbers; of words 4, 3, 3, 5, 3, 2, 2, 3
    assert encoding.width == 6 + 25
    rows = rows_of(select_columns(frame, data, validation=None, table=encoding))
    assert [label for _, label in rows] == [0, 0, 1, 0, 1]
    assert {len(values) for values, _ in rows} == {31}
    # age, work class, final weight, education, its number
    assert rows[0][0][:10] == [39, 0, 0, 0, 1, 77516, 0, 1, 0, 13]
    assert rows[3][0][:10] == [53, 1, 0, 0, 0, 234721, 1, 0, 0, 7]


def test_adult_becomes_shards(spark, adult, tmp_path):
    directory, manifest = prepare(spark, csv(adult, "*"), store=tmp_path / "store", seed=1)
    assert (manifest.rows.input.dtype, manifest.rows.input.shape, manifest.rows.classes) == ("float32", (31,), 2)
    assert manifest.train_rows + manifest.validation_rows == 5
    assert manifest.table == Manifest.load(directory).table
    assert manifest.table is not None
    assert manifest.table.categories["_c14"].words == ("<=50K", ">50K")


def test_the_numbers_of_adult_alone(spark, adult):
    data = csv(adult, "_c0", "_c12")
    frame = rows_at(spark, data, validation=False)
    encoding = learn(frame, data)
    assert encoding == TableEncoding(
        features=(Feature(name="_c0"), Feature(name="_c12")), categories={"_c14": Category(words=("<=50K", ">50K"))}
    )
    rows = rows_of(select_columns(frame, data, validation=None, table=encoding))
    assert rows == [([39, 40], 0), ([50, 13], 0), ([38, 40], 1), ([53, 40], 0), ([28, 40], 1)]


def test_other_rows_are_encoded_as_the_training_rows_were(spark, adult, tmp_path):
    data = csv(adult, "_c1", "_c0", validation_path=str(tmp_path / "test.csv"), validation_fraction=0)
    (tmp_path / "test.csv").write_text(PEOPLE.splitlines()[2] + "\n")  # alone it would be numbered otherwise
    frames = [rows_at(spark, data, validation=side) for side in (False, True)]
    encoding = learn(frames[0], data)
    both = select_columns(frames[0], data, validation=frames[1], table=encoding)
    alone = select_columns(frames[1], data, validation=None, table=encoding)
    assert rows_of(both)[5:] == rows_of(alone) == [([0, 1, 0, 0, 38], 1)]


@pytest.fixture(scope="module")
def mixed(spark):
    """One row in each kind of feature, three times; `word` comes with spaces."""
    return spark.createDataFrame(
        [
            (1.5, True, Vectors.dense([1.0, 2.0]), [[1, 2], [3, 4]], " b", 7, "no"),
            (2.5, False, Vectors.sparse(2, [0], [3.0]), [[5, 6], [7, 8]], "a ", 8, "yes"),
            (3.5, True, Vectors.dense([4.0, 5.0]), [[0, 0], [0, 0]], "b", 9, "no"),
        ],
        ["number", "flag", "vector", "nested", "word", "whole", "y"],
    )


def test_features_of_every_kind_in_the_order_given(mixed):
    data = table("whole", "word", "vector", "number", "flag", "nested")
    encoding = learn(mixed, data)
    assert encoding == TableEncoding(
        features=(
            Feature(name="whole"),
            Feature(name="word", words=("a", "b"), width=2),
            Feature(name="vector", width=2),
            Feature(name="number"),
            Feature(name="flag"),
            Feature(name="nested", width=4),
        ),
        categories={"y": Category(words=("no", "yes"))},
    )
    selected = select_columns(mixed, data, validation=None, table=encoding)
    assert selected.dtypes == [("c0", "array<float>"), ("c1", "bigint"), ("fault", "string")]
    assert rows_of(selected) == [
        ([7, 0, 1, 1, 2, 1.5, 1, 1, 2, 3, 4], 0),
        ([8, 1, 0, 3, 0, 2.5, 0, 5, 6, 7, 8], 1),
        ([9, 0, 1, 4, 5, 3.5, 1, 0, 0, 0, 0], 0),
    ]


def test_words_of_another_encoding_are_refused(spark, tmp_path):
    (tmp_path / "latin1.csv").write_bytes("café,1\ncafè,0\n".encode("latin1"))
    data = csv(tmp_path / "latin1.csv", "_c0", label="_c1")
    with pytest.raises(DataError, match=r"column _c0 has the word 'caf\ufffd', in which a letter was not UTF-8"):
        learn(rows_at(spark, data, validation=False), data)


def test_the_star_leaves_out_label_and_mark(mixed):
    data = table("*", label="whole", validation_column="flag", validation_fraction=0)
    encoding = learn(mixed, data)
    assert encoding is not None
    assert [feature.name for feature in encoding.features] == ["number", "vector", "nested", "word", "y"]
    selected = select_columns(mixed, data, validation=None, table=encoding)
    assert selected.columns == ["c0", "c1", "validation", "fault"]
    assert [row.validation for row in selected.collect()] == [True, False, True]


AT = "row 1 of partition 0"


def labelled(kind, *values, **settings):
    """What is learned of one input and a label of these values."""

    def make(spark):
        frame = spark.createDataFrame([(1.0, value) for value in values], f"x double, y {kind}")
        data = Data(source="parquet", path="p", image="x", label="y", validation_fraction=0.5, **settings)
        encoding = learn(frame, data)
        rows = select_columns(frame, data, validation=None, table=encoding).collect()
        return encoding and encoding.categories.get("y"), [row.c1 for row in rows]

    return make


@pytest.mark.parametrize(
    ("made", "category", "classes"),
    [
        (labelled("int", 2, 0, 1), Category(), [2, 0, 1]),
        (labelled("bigint", 6, 2, 4, 2), Category(values=(2, 4, 6)), [2, 0, 1, 0]),
        (labelled("int", -1, 1, -1), Category(values=(-1, 1)), [0, 1, 0]),
        (labelled("bigint", 0, 10**12, 0), Category(values=(0, 10**12)), [0, 1, 0]),
        (labelled("int", 20, 0, 10), Category(values=(0, 10, 20)), [2, 0, 1]),
        (labelled("int", 4, 0, 2), Category(), [4, 0, 2]),
        (labelled("double", 0.0, 2.0), Category(), [0, 2]),
        (labelled("float", 1.0, 3.0), Category(values=(1, 3)), [0, 1]),
        (labelled("double", 0.5, 1.0), None, [0.5, 1.0]),
        (labelled("double", *map(float, range(200))), None, list(range(200))),
        (labelled("int", 3, 1, class_values="stored"), None, [3, 1]),
        (labelled("double", 3.0, 1.0, classes=4), Category(), [3, 1]),
        (labelled("int", 3, 1, columns={"y": DataColumn(kind="number")}), None, [3.0, 1.0]),
    ],
)
def test_numbers_that_are_classes(spark, made, category, classes):
    assert made(spark) == (category, classes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            (1.0, 0.5),
            r"column y has numbers with a fraction, from 0\.5 on; classes are whole.*set data\.columns\.y\.k",
        ),
        ((0.0, 0.5), rf"column y: {AT} says '0\.5'; a class is a whole number"),
    ],
)
def test_numbers_that_are_no_classes(spark, values, message):
    frame = spark.createDataFrame([(1.0, value) for value in values], "x double, y double").coalesce(1)
    columns = {"y": DataColumn(kind="category")}
    data = Data(source="parquet", path="p", image="x", label="y", validation_fraction=0.5, columns=columns)
    with pytest.raises(DataError, match=message):
        rows_of(select_columns(frame, data, validation=None, table=learn(frame, data)))


def test_words_of_a_label_beside_one_input_column(mixed):
    data = Data(source="parquet", path="p", image="vector", label="y", validation_path="v")
    encoding = learn(mixed, data)
    assert encoding == TableEncoding(categories={"y": Category(words=("no", "yes"))})
    rows = rows_of(select_columns(mixed, data, validation=mixed.limit(2), table=encoding))
    assert [label for _, label in rows] == [0, 1, 0, 0, 1]


def test_a_boolean_label_has_two_words_without_a_job(mixed, monkeypatch):
    monkeypatch.delattr(vocabulary, "collect_reports")
    data = table("number", "whole", label="flag")
    encoding = learn(mixed, data)
    assert encoding == TableEncoding(
        features=(Feature(name="number"), Feature(name="whole")),
        categories={"flag": Category(words=("false", "true"))},
    )
    rows = rows_of(select_columns(mixed, data, validation=None, table=encoding))
    assert rows == [([1.5, 7], 1), ([2.5, 8], 0), ([3.5, 9], 1)]


def test_words_that_look_like_numbers_in_the_test_rows(spark):
    data = table("code")
    encoding = TableEncoding(
        features=(Feature(name="code", words=("1", "2", "?"), width=3),),
        categories={"y": Category(words=("0", "x"))},
    )
    numbers = spark.createDataFrame([(2, 0)], ["code", "y"])
    assert rows_of(select_columns(numbers, data, validation=None, table=encoding)) == [([0, 1, 0], 0)]


WORDS = TableEncoding(features=(Feature(name="x", words=("a", "b"), width=2), Feature(name="n")))
PAIRS = TableEncoding(features=(Feature(name="x", width=2),))


@pytest.mark.parametrize(
    ("schema", "row", "encoding", "message"),
    [
        (
            "x string, n int, y int",
            ("c", 1, 0),
            WORDS,
            f"column x: {AT} says 'c'; a word of the training rows is nee",
        ),
        (
            "x string, n int, y int",
            (None, 1, 0),
            WORDS,
            rf"column x: {AT} says nothing \(null\); a word of the tra",
        ),
        (
            "x string, n int, y int",
            ("a", None, 0),
            WORDS,
            f"column n: {AT} is null; every row needs finite numbers",
        ),
        ("x string, n double, y int", ("a", float("nan"), 0), WORDS, f"column n: {AT} is NaN; every row needs fi"),
        ("x string, n double, y int", ("a", 1e300, 0), WORDS, f"column n: {AT} is Infinity; every row needs fin"),
        ("x array<int>, y int", ([1], 0), PAIRS, f"column x: {AT} has 1 values and needs 2, as in training: corr"),
        ("x array<int>, y int", ([1, None], 0), PAIRS, f"column x: {AT} is null or holds a null, NaN or infinity"),
        ("x array<int>, y int", (None, 0), PAIRS, f"column x: {AT} is null or holds a null, NaN or infinity; eve"),
    ],
)
def test_a_cell_that_cannot_be_used_is_named_by_column_and_row(spark, schema, row, encoding, message):
    good = ("a", 1, 0) if encoding is WORDS else ([1, 2], 0)
    good = tuple(float(value) if "n double" in schema and value == 1 else value for value in good)
    frame = spark.createDataFrame([good, row, good], schema).coalesce(1)
    selected = select_columns(frame, table("*"), validation=None, table=encoding)
    with pytest.raises(DataError, match=message) as told:
        rows_of(selected)
    assert "SQLSTATE" not in str(told.value)
    assert str(told.value).count("\n") == 0


def test_a_label_that_training_did_not_have(spark):
    words = TableEncoding(categories={"y": Category(words=("<=50K", ">50K"))})
    frame = spark.createDataFrame([(1.0, "<=50K"), (2.0, "<=50K.")], "x double, y string").coalesce(1)
    data = Data(source="parquet", path="p", image="x", label="y", validation_path="v")
    selected = select_columns(frame, data, validation=None, table=words)
    message = rf"column y: {AT} says '<=50K\.'; the training rows say <=50K, >50K: correct the label or remove"
    with pytest.raises(DataError, match=message):
        rows_of(selected)


def test_columns_that_changed_their_kind(spark):
    frame = spark.createDataFrame([("a", [1.0], 0)], ["n", "x", "y"])
    with pytest.raises(DataError, match="column n is string, and the training rows have numbers there; both must"):
        select_columns(frame, table("*"), validation=None, table=TableEncoding(features=(Feature(name="n"),)))
    with pytest.raises(DataError, match="column x is array<double>, and the training rows have words there"):
        select_columns(frame, table("*"), validation=None, table=WORDS)
    with pytest.raises(DataError, match=r"column z is not in the data, which has n, x, y: set data\.features"):
        select_columns(frame, table("*"), validation=None, table=TableEncoding(features=(Feature(name="z"),)))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (("*", "number"), r"data.features is \['\*', 'number'\]; '\*' is every column and stands alone"),
        (("number", "number"), r"'number' is there twice: correct data.features"),
        (("number", "y"), r"data.features has 'y', which is what the net is to find out"),
        (("number", "flag"), r"data.features has 'flag', which is what the net is to find out or who is tested"),
        (("absent",), "column absent is not in the data"),
        (("when",), r"column when is date; a feature must be a number, a boolean, a word, a vector or an array"),
        (("nothing",), "column nothing is null in every row; it tells nothing"),
        (("ragged",), "column ragged has rows of 1 and of 2 values; a feature has as many in every row"),
    ],
)
def test_features_that_cannot_be(mixed, features, message):
    frame = mixed.withColumns(
        {
            "when": F.current_date(),
            "nothing": F.lit(None).cast("string"),
            "ragged": F.when(F.col("whole") == 7, F.array("number")).otherwise(F.array("number", "number")),
        }
    )
    data = table(*features, validation_column="flag", validation_fraction=0)
    with pytest.raises(DataError, match=message):
        learn(frame, data)


def test_a_column_of_names_is_no_feature(spark):
    frame = spark.range(0, 1001, 1, 2).select(F.concat(F.lit("name "), "id").alias("x"), F.lit(1).alias("y"))
    with pytest.raises(DataError, match=r"column x has more than 1000 different words \('name 0', .*name other"):
        learn(frame, table("x"))
    encoding = learn(frame.limit(1000), table("x"))
    assert encoding is not None
    assert encoding.width == 1000
    # a label may have more
    named = learn(frame.withColumn("n", F.lit(1)), table("n", label="x"))
    assert named is not None
    assert len(named.categories["x"].words) == 1001


def test_a_star_over_nothing(mixed):
    with pytest.raises(DataError, match=r"data\.features is \['\*'\] and the data have y alone: add columns"):
        learn(mixed.select("y"), table("*"))


def test_no_rows_teach_nothing(mixed):
    with pytest.raises(DataError, match="the data have no rows"):
        learn(mixed.limit(0), table("word"))


def test_words_with_quotes_and_other_letters(spark):
    words = ['"', "'", "\\", "ü\tx", "[1, 2]"]
    frame = spark.createDataFrame([(word, number) for number, word in enumerate(words)], ["x", "y"])
    encoding = learn(frame, table("x"))
    assert encoding is not None
    assert set(encoding.features[0].words) == set(words)
    rows = rows_of(select_columns(frame, table("x"), validation=None, table=encoding))
    assert [values.index(1) for values, _ in rows] == [sorted(words).index(word) for word in words]
