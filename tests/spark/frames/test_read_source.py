"""Every source as a DataFrame: what `spark.read.format` and `read_source` give, and what they refuse."""

import os
import re
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from formats import cifar_directory, random_rows, write_mnist
from image_files import jpeg, write_folder, write_tar
from opened import checked_rows_at, rows_at
from places import REFERENCE
from s3_server import CREDENTIALS, s3_server
from sparknet.config import Data
from sparknet.data.sources.opening import open_source
from sparknet.errors import ConfigError, DataError
from sparknet.spark.frames.column_kinds import FAULT
from sparknet.spark.frames.data_sources import register
from sparknet.spark.frames.read_source import read_source
from sparknet.spark.frames.select_columns import select_columns
from sparknet.spark.jobs.error_translation import spark_errors

pytestmark = pytest.mark.spark

DATABASES = REFERENCE / "datum" / "databases"
NAMED = "struct<name:string,image:{},label:bigint,error:string>"


@pytest.fixture(scope="module")
def spark():
    """A session whose processes, and this one, have credentials for the server of these tests."""
    names = {**CREDENTIALS, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = (
        SparkSession.builder.master("local[2]")
        .appName("test_sources")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
    )
    # The Java machine may have been started by other tests, with their environment.
    session = builder.config(
        map={f"spark.executorEnv.{name}": value for name, value in names.items()}
    ).getOrCreate()
    session.sparkContext.setLogLevel("OFF")  # these tests provoke failures
    register(session)
    register(session)  # a second time does no harm
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        yield session
    session.stop()


def at(path, source="cifar10", **settings):
    """A configuration with the same path for training and validation."""
    return Data(source=source, path=str(path), **{"validation_path": str(path), **settings})


def pairs(images, labels):
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def as_set(frame):
    return sorted((bytes(row.image), row.label) for row in frame.collect())


# -- spark.read.format, by people who never train --


def test_cifar_by_split(spark, tmp_path):
    both = cifar_directory(tmp_path, rows=4)
    for split, (images, labels) in zip(("train", "test"), both, strict=True):
        frame = spark.read.format("cifar10").option("split", split).load(str(tmp_path))
        assert frame.schema.simpleString() == "struct<image:binary,label:bigint>"
        assert as_set(frame) == sorted(
            (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
        )


def test_mnist_and_digits(spark, tmp_path):
    images, labels = random_rows(7, (28, 28))
    write_mnist(tmp_path, "train", images, labels, zipped=True)
    found = spark.read.format("mnist").load(str(tmp_path))
    assert as_set(found) == sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )
    assert spark.read.format("digits").load().count() == 1797


@pytest.mark.parametrize(("name", "kind"), [("uint8", "binary"), ("float", "array<float>")])
def test_databases_that_caffe_wrote(spark, name, kind):
    with np.load(DATABASES / "records.npz") as arrays:
        values, labels = arrays[f"{name}/data"], arrays[f"{name}/label"]
    frame = spark.read.format("lmdb").load(str(DATABASES / name))
    assert frame.schema.simpleString() == NAMED.format(kind)
    rows = sorted(frame.collect())
    cells = [np.frombuffer(row.image, np.uint8) if name == "uint8" else np.float32(row.image) for row in rows]
    np.testing.assert_array_equal(np.stack(cells), values.reshape(len(values), -1))
    assert [row.label for row in rows] == labels.tolist()
    assert {row.error for row in rows} == {None}
    assert rows[0].name.startswith("00000000")


def test_tar_files_with_their_labels(spark, tmp_path):
    images = {f"n{number}.jpg": jpeg(number) for number in range(5)}
    write_tar(tmp_path / "tars" / "a.tar", {**images, "n9.jpg": b"no image"})
    (tmp_path / "numbers.txt").write_text("".join(f"n{number}.jpg {number}\n" for number in (*range(5), 9)))
    reader = spark.read.format("image_tar").option("labels", str(tmp_path / "numbers.txt"))
    frame = reader.load(str(tmp_path / "tars"))
    assert frame.schema.simpleString() == NAMED.format("binary")
    rows = {row.name: row for row in frame.collect()}
    assert {name: bytes(row.image) for name, row in rows.items() if row.error is None} == images
    assert [rows[f"n{number}.jpg"].label for number in range(5)] == [0, 1, 2, 3, 4]
    assert rows["n9.jpg"].image is None
    assert "a.tar" in rows["n9.jpg"].error


def test_a_directory_of_classes(spark, tmp_path):
    made = write_folder(tmp_path, {"b c": ["1.jpg", "2.JPG"], "a": ["%20 ü.jpeg"]})
    (tmp_path / "a" / "broken.png").write_bytes(b"<html>")
    frame = spark.read.format("image_folder").load(str(tmp_path))
    assert frame.schema.simpleString() == NAMED.format("binary")
    rows = {row.name: row for row in frame.collect()}
    assert {name: bytes(row.image) for name, row in rows.items() if row.error is None} == made
    assert {name: row.label for name, row in rows.items()} == {
        "a/%20 ü.jpeg": 0,
        "a/broken.png": None,
        "b c/1.jpg": 1,
        "b c/2.JPG": 1,
    }
    assert "a/broken.png: " in rows["a/broken.png"].error


def test_an_option_that_cannot_be(spark, tmp_path):
    cifar_directory(tmp_path)
    with pytest.raises(PySparkException, match="option split is 'val'; it must be 'train' or 'test'"):
        spark.read.format("cifar10").option("split", "val").load(str(tmp_path)).collect()


def test_what_is_wrong_on_a_worker_comes_back_in_words(spark, tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(b"\xff" * 3073)
    with pytest.raises(DataError, match=r"data_batch_1.bin: row 0 has label 255"), spark_errors("reading"):
        spark.read.format("cifar10").load(str(tmp_path)).collect()


# -- data.source --


def test_every_source_reads_training_and_validation_rows(spark, tmp_path):
    train, test = cifar_directory(tmp_path, rows=4)
    frames = [rows_at(spark, at(tmp_path), validation=side) for side in (False, True)]
    assert [frame.count() for frame in frames] == [len(train[0]), len(test[0])]


def test_relative_paths_are_of_this_process(spark, tmp_path, monkeypatch):
    write_folder(tmp_path / "images", {"a": ["1.jpg"], "b": ["1.jpg"]})
    monkeypatch.chdir(tmp_path)
    assert rows_at(spark, at("images", "image_folder"), validation=False).count() == 2


def test_classes_of_test_images_are_the_training_images(spark, tmp_path):
    write_folder(tmp_path / "train", {"a": ["1.jpg"], "b": ["1.jpg"], "c": ["1.jpg"]})
    write_folder(tmp_path / "val", {"b": ["1.jpg"], "c": ["1.jpg"]})
    data = at(tmp_path / "train", "image_folder", validation_path=str(tmp_path / "val"))
    rows = sorted(rows_at(spark, data, validation=True).collect())
    assert [(row.name, row.label) for row in rows] == [("b/1.jpg", 1), ("c/1.jpg", 2)]
    selected = select_columns(
        rows_at(spark, data, validation=False), data, validation=rows_at(spark, data, validation=True)
    )
    assert selected.columns == ["c0", "c1", "validation", "error", "name"]
    assert sorted((row.c1, row.validation) for row in selected.collect()) == [
        (0, False),
        (1, False),
        (1, True),
        (2, False),
        (2, True),
    ]


def test_csv_with_and_without_a_header(spark, tmp_path):
    (tmp_path / "a.csv").write_text("age, work, y\n 39, State-gov , 0\n50, ?, 1\n")
    frame = rows_at(spark, at(tmp_path / "a.csv", "csv"), validation=False)
    assert frame.schema.simpleString() == "struct<age:bigint,work:string,y:bigint>"
    assert [tuple(row) for row in frame.collect()] == [(39, "State-gov", 0), (50, "?", 1)]
    bare = rows_at(spark, at(tmp_path / "a.csv", "csv", header=False), validation=False)
    assert (bare.columns, bare.count()) == (["_c0", "_c1", "_c2"], 3)
    assert bare.select("_metadata.file_path").distinct().count() == 1  # what knows remote files again


def test_csv_as_rfc_4180_has_it(spark, tmp_path):
    text = '"say ""hi"", you",2,1\n"C:\\",,0\n\n ,"3, and 4",1\n'
    (tmp_path / "a.csv").write_text(f"größe,b.c,y\n{text}", "utf-8-sig")
    frame = rows_at(spark, at(tmp_path / "a.csv", "csv"), validation=False)
    assert frame.columns == ["größe", "b.c", "y"]
    assert [tuple(row) for row in frame.collect()] == [
        ('say "hi", you', "2", 1),
        ("C:\\", None, 0),
        (None, "3, and 4", 1),
    ]


@pytest.mark.parametrize("line", ["1,2,0,9", "1,2", "a, b,7,0", '"two'])
@pytest.mark.parametrize("column", ["label", "malformed line"])
def test_a_line_of_another_width_is_told_of_whatever_is_asked_of_it(spark, tmp_path, line, column):
    (tmp_path / "a.csv").write_text(f"{column},x,y\n1,2,1\n{line}\n")
    frame = checked_rows_at(spark, at(tmp_path / "a.csv", "csv"), validation=False)
    assert frame.columns == [column, "x", "y", FAULT]
    words = f"the line '{re.escape(line)}' has not 3 values as the first one has: put values with a comma in quotes"
    faults = [row[FAULT] for row in frame.select(column, f"`{FAULT}`").collect()]
    assert faults[0] is None
    assert re.match(rf"{tmp_path}/a\.csv: {words}", faults[1])


@pytest.mark.parametrize("other", ["y,x,label", "x, y,label", "x,y"])
def test_files_with_other_columns_are_not_read_together(spark, tmp_path, other):
    (tmp_path / "1 ü.csv").write_text("x,y,label\n1,2,0\n")
    (tmp_path / "2.csv").write_text("x,y,label\r\n3,4,1\r\n", "utf-8-sig", newline="")
    (tmp_path / "3.csv").touch()
    frame = rows_at(spark, at(tmp_path, "csv"), validation=False)
    assert sorted(tuple(row) for row in frame.collect()) == [(1, 2, 0), (3, 4, 1)]
    (tmp_path / "4.csv").write_text(f"{other}\n6,5,1\n")
    words = rf"4\.csv: the first line is '{other}', and that of file:.*1%20.*\.csv is 'x,y,label'; files that"
    with pytest.raises(DataError, match=words):
        rows_at(spark, at(tmp_path, "csv"), validation=False)


@pytest.mark.parametrize(
    ("text", "names", "rows", "told"),
    [
        ("a;y\n1,5;x\n2,5;z\n", ["a", "y"], [("1,5", "x"), ("2,5", "z")], ["a semicolon separates"]),
        ("a\ty\n1\t2\n", ["a", "y"], [(1, 2)], ["a tab separates"]),
        ("a|y\n1|2\n", ["a", "y"], [(1, 2)], ["a bar separates"]),
        ("a\n1\n2\n", ["a"], [(1,), (2,)], []),
        ("1,2,x\n3,4.5,z\n", ["_c0", "_c1", "_c2"], [(1, 2.0, "x"), (3, 4.5, "z")], ["names no columns"]),
        # What pandas calls columns that nobody has named, and an index without a name.
        ("0,1,2\n5,6,7\n", ["0", "1", "2"], [(5, 6, 7)], []),
        (",a,b\n0,6,7\n", ["_c0", "a", "b"], [(0, 6, 7)], []),
        ("2019,2020,y\n5,6,7\n", ["2019", "2020", "y"], [(5, 6, 7)], []),
        ("a,y\nx,u\nz,v\n", ["a", "y"], [("x", "u"), ("z", "v")], []),
        ("a,y\nNA,1e3\n2,-\n,+.5\n", ["a", "y"], [(None, 1e3), (2, None), (None, 0.5)], ["a: NA", "y: -"]),
        ("a,y\nNA,true\n-,False\n", ["a", "y"], [("NA", True), ("-", False)], []),
        ("a,y\n0x1f,1\n0x20,2\n", ["a", "y"], [("0x1f", 1), ("0x20", 2)], []),
        ("a,y\n1d,1\ninf,2\n", ["a", "y"], [("1d", 1), ("inf", 2)], []),
        ("a,y\n'x,1',2\n", ["a", "y"], [("x,1", 2)], []),
    ],
)  # fmt: skip
def test_csv_as_people_write_it(spark, tmp_path, text, names, rows, told):
    (tmp_path / "a.csv").write_text(text)
    heard = []
    data = at(tmp_path / "a.csv", "csv", quote="'")
    frame = read_source(spark, open_source(data), data, tell=heard.append).drop(FAULT)
    assert frame.columns == names
    assert [tuple(row) for row in frame.collect()] == rows
    assert len(heard) == len(told)
    for message, part in zip(heard, told, strict=True):
        assert part in message


def test_what_is_said_of_a_csv_counts(spark, tmp_path):
    (tmp_path / "a.csv").write_text("1;7,1\n?;8,2\n")
    settings = {
        "separator": ",",
        "header": False,
        "nulls": ("?;8",),
        "words": ("_c1",),
        "image": "_c0",
        "label": "_c1",
    }
    data = at(tmp_path / "a.csv", "csv", **settings)
    heard = []
    frame = read_source(spark, open_source(data), data, tell=heard.append).drop(FAULT)
    assert [tuple(row) for row in frame.collect()] == [("1;7", "1"), ("?;8", "2")]
    assert heard == []
    for key in ("separator", "quote"):
        with pytest.raises(ConfigError, match=f"data.{key} is ';;'; it must be a single letter"):
            at(tmp_path / "a.csv", "csv", **{key: ";;"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["x,y", "1,0", "2,1", '"oh, no",1'],
            r"a\.csv, line 4: column x has 'oh, no' among 3 numbers; .* data\.words",
        ),
        (["x,y", *["1,0"] * 300, "1,O"], r"a\.csv, line 302: column y has 'O' among 301 numbers"),
        (
            ["x;y", "1,5;0", "2;1"],
            r"a\.csv, line 2: column x has numbers with a decimal comma; they must have a point",
        ),
        (["x;y", "1.000,5;0", "2,5;1"], r"a\.csv, line 2: column x has numbers with a decimal comma"),
    ],
)
def test_what_is_meant_for_a_number_and_is_none(spark, tmp_path, lines, message):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.csv").write_text(f"{lines[0]}\n{lines[1]}\n".replace("1,5", "1"))
    (tmp_path / "b" / "a.csv").write_text("\n".join(lines) + "\n")
    data = at(tmp_path / "b", "csv", features=("*",), label="y")
    with pytest.raises(DataError, match=message):
        rows_at(spark, data, validation=False)
    # Of columns that nobody asks for nothing need be right, and words may be meant.
    for other in (at(tmp_path / "b", "csv", image="z", label="u"), replace(data, words=("x", "y"))):
        assert rows_at(spark, other, validation=False).count() == len(lines)


def test_many_words_are_words(spark, tmp_path):
    text = "".join(f"{at},{at % 2}\n" for at in range(30))
    (tmp_path / "a.csv").write_text(f"x,y\n{text}a,1\nb,0\nc,1\nd,0\n")
    data = at(tmp_path / "a.csv", "csv", features=("x",), label="y")
    assert rows_at(spark, data, validation=False).schema["x"].dataType.simpleString() == "string"


def test_an_empty_csv(spark, tmp_path):
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match=r"a\.csv: the file is empty; training needs rows"):
        rows_at(spark, at(tmp_path / "a.csv", "csv"), validation=False)


@pytest.mark.parametrize("name", ["a[1]{b}*?", "a b#c%20d", "ä\\b"])
def test_what_a_file_is_called_is_no_glob_where_it_is_there(spark, tmp_path, name):
    pq.write_table(pa.table({"image": [[1.0, 2.0]], "label": [0]}), tmp_path / name)
    (tmp_path / f"{name}.csv").write_text("x,label\n1,0\n")
    assert rows_at(spark, at(tmp_path / name, "parquet"), validation=False).count() == 1
    assert rows_at(spark, at(tmp_path / f"{name}.csv", "csv"), validation=False).count() == 1


def test_parquet_by_home_directory_and_glob(spark, tmp_path, monkeypatch):
    pq.write_table(pa.table({"image": [[1.0, 2.0]], "label": [0]}), tmp_path / "p.parquet")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/p.parquet", f"{tmp_path}/*.parquet", f"file:{tmp_path}/p.parquet"):
        assert rows_at(spark, at(path, "parquet"), validation=False).count() == 1


@pytest.mark.parametrize("source", ["csv", "parquet"])
@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_remote_tables_need_sparks_own_library(spark, source, scheme):
    data = at(f"{scheme}://bucket/x", source)
    with pytest.raises(
        DataError, match=rf"this Spark has nothing to read {scheme}:// with; .* s3a:// .*hadoop-aws"
    ):
        rows_at(spark, data, validation=False)


# -- an object store --


def test_sources_on_s3(spark, tmp_path):
    train, _ = cifar_directory(tmp_path / "cifar", rows=4)
    made = write_folder(tmp_path / "folder", {"a": ["1.jpg", "2.jpg"], "b": ["x y.jpg"]})
    with s3_server("bucket") as server:
        client = server.client()
        for file in (file for file in tmp_path.rglob("*") if file.is_file()):
            client.put_object(Bucket="bucket", Key=str(file.relative_to(tmp_path)), Body=file.read_bytes())
        database = (DATABASES / "uint8" / "data.mdb").read_bytes()
        client.put_object(Bucket="bucket", Key="database/data.mdb", Body=database)

        def rows(source, key):
            data = at(f"s3://bucket/{key}", source, s3_endpoint=server.endpoint)
            return sorted(rows_at(spark, data, validation=False).collect())

        assert sorted(row.label for row in rows("cifar10", "cifar")) == sorted(train[1].tolist())
        assert sorted(row.label for row in rows("cifar10", "cifar/data_batch_[12].bin")) == sorted(
            train[1][:8].tolist()
        )
        assert {row.name: bytes(row.image) for row in rows("image_folder", "folder")} == made
        assert len(rows("lmdb", "database")) == 40
        by_hand = spark.read.format("image_folder").option("s3Endpoint", server.endpoint).load("s3://bucket/folder")
        assert [row.label for row in sorted(by_hand.collect())] == [0, 0, 1]
