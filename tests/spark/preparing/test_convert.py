"""Sources written as LMDB databases and as Parquet, and read back."""

import io
import os
import sys
import tarfile
import tempfile
from pathlib import Path

import cv2
import h5py
import lmdb
import numpy as np
import pytest
from PIL import Image
from pyspark.sql import SparkSession
from sklearn.datasets import load_sample_images

from formats import cifar_directory
from opened import rows_at
from s3_server import CREDENTIALS, reach, s3_server
from sparknet.config import Data
from sparknet.data.sources.datum import parse
from sparknet.data.sources.opening import open_source
from sparknet.errors import DataError
from sparknet.spark.preparing import convert
from sparknet.spark.preparing.convert import to_lmdb, to_parquet

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark():
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2]").appName("test_convert").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.host", "127.0.0.1")
    for name, value in {**CREDENTIALS, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        builder = builder.config(f"spark.executorEnv.{name}", value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A directory of CIFAR-10 files and its training rows."""
    directory = tmp_path_factory.mktemp("cifar")
    (images, labels), test = cifar_directory(directory)
    return directory, images, labels, test


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A directory per class, of JPEG files of several sizes, one PNG and one file that is cut short."""
    directory = tmp_path_factory.mktemp("photographs")
    china, flower = load_sample_images().images
    for name, photograph in (("china", china), ("flower", flower)):
        (directory / name).mkdir()
        for number in range(6):
            patch = Image.fromarray(photograph[10 * number : 90 + 11 * number, 7 * number : 120])
            patch.save(directory / name / f"{number}.jpg", quality=90)
        Image.fromarray(photograph[:50, :60]).save(directory / name / "drawn.png")
    whole = (directory / "china" / "0.jpg").read_bytes()
    (directory / "china" / "short.jpg").write_bytes(whole[: len(whole) // 2])
    return directory


def lmdb_of(spark, data, target, *, partitions, testing=False):
    return to_lmdb(spark, open_source(data, validation=testing), data, target, partitions=partitions)


def parquet_of(spark, data, target, *, keys):
    return to_parquet(spark, open_source(data), data, target, keys=keys)


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def data_of(source, path, **settings):
    return Data(source=source, path=str(path), validation_path=str(path), **settings)


def records(directory):
    """What a database holds as lmdb itself reads it with the flags that Caffe uses: key and Datum."""
    with lmdb.open(str(directory), readonly=True) as environment, environment.begin() as transaction:
        return [(bytes(key), parse(bytes(value))) for key, value in transaction.cursor()]


def test_pixels_as_one_database(spark, cifar, tmp_path):
    directory, images, labels, _ = cifar
    done = lmdb_of(spark, data_of("cifar10", directory), str(tmp_path / "rows"), partitions=1)
    assert (done.rows, done.parts, done.damage.rows) == (60, 1, 0)
    assert names_in(tmp_path) == ["rows"]
    found = records(tmp_path / "rows")
    assert [key for key, _ in found] == [b"%08d" % number for number in range(60)]
    assert all(datum.shape == (3, 32, 32) and not datum.encoded for _, datum in found)
    assert np.array_equal([np.frombuffer(datum.data, np.uint8) for _, datum in found], images.reshape(60, -1))
    assert [datum.label for _, datum in found] == labels.tolist()


def test_more_databases_than_files_hold_every_row_once(spark, cifar, tmp_path):
    directory, images, labels, test = cifar
    done = lmdb_of(spark, data_of("cifar10", directory), str(tmp_path / "rows"), partitions=5)
    assert (done.rows, done.parts) == (60, 5)
    assert names_in(tmp_path / "rows") == [f"part-{number:05d}" for number in range(5)]
    read = rows_at(spark, data_of("lmdb", tmp_path / "rows"), validation=False).collect()
    assert sorted((bytes(row.image), row.label) for row in read) == sorted(
        (image.tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)
    )
    held = lmdb_of(spark, data_of("cifar10", directory), str(tmp_path / "test"), partitions=1, testing=True)
    assert held.rows == len(test[1])


@pytest.mark.parametrize("partitions", [1, 3])
def test_databases_where_spark_does_not_tell_its_partitions(spark, cifar, tmp_path, monkeypatch, partitions):
    def hidden(frame):
        raise NotImplementedError("Spark Connect has no RDDs")

    monkeypatch.setattr(type(spark.range(1)), "rdd", property(hidden))
    monkeypatch.setattr(convert, "is_remote", lambda: True)
    done = lmdb_of(spark, data_of("cifar10", cifar[0]), str(tmp_path / "rows"), partitions=partitions)
    assert (done.rows, done.parts) == (60, partitions)


def test_images_as_pixels_of_one_size_in_the_order_of_caffe(spark, photographs, tmp_path):
    settings = {"resize": (40, 30), "corrupt_share": 0.1}
    done = lmdb_of(spark, data_of("image_folder", photographs, **settings), str(tmp_path / "rows"), partitions=1)
    assert (done.rows, done.damage.rows) == (14, 1)
    assert "short.jpg" in done.damage.examples[0]
    found = {key.split(b"_", 1)[1].decode().rsplit("/", 2)[-1]: datum for key, datum in records(tmp_path / "rows")}
    picture = cv2.imread(str(photographs / "flower" / "3.jpg"))
    expected = cv2.resize(picture, (30, 40), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    pixels = [np.frombuffer(d.data, np.uint8).reshape(d.shape).astype(int) for d in found.values() if d.label == 1]
    assert min(np.abs(one - expected).max() for one in pixels) <= 2


def test_images_as_the_files_they_are(spark, photographs, tmp_path):
    settings = {"keep": "encoded", "resize": (40, 30), "corrupt_share": 0.1}
    lmdb_of(spark, data_of("image_folder", photographs, **settings), str(tmp_path / "rows"), partitions=2)
    databases = sorted((tmp_path / "rows").iterdir())
    found = [datum for database in databases for _, datum in records(database)]
    files = [path.read_bytes() for path in photographs.rglob("*.*") if path.name != "short.jpg"]
    assert sorted(bytes(datum.data) for datum in found) == sorted(files)
    assert all(datum.encoded for datum in found)
    assert sorted(datum.label for datum in found) == [0] * 7 + [1] * 7


@pytest.mark.parametrize("write", ["lmdb", "parquet"])
def test_files_that_are_kept_need_no_common_size(spark, photographs, tmp_path, write):
    data = data_of("image_folder", photographs, keep="encoded", corrupt_share=0.1, threads=2)
    if write == "lmdb":
        done = lmdb_of(spark, data, str(tmp_path / "rows"), partitions=1)
        found = [datum.data for _, datum in records(tmp_path / "rows")]
    else:
        done = parquet_of(spark, data, str(tmp_path / "rows"), keys=1)
        found = [row.data for row in spark.read.parquet(str(tmp_path / "rows")).collect()]
    assert (done.rows, done.damage.rows) == (14, 1)
    assert "short.jpg" in done.damage.examples[0]
    files = [path.read_bytes() for path in photographs.rglob("*.*") if path.name != "short.jpg"]
    assert sorted(bytes(data) for data in found) == sorted(files)


def test_the_tests_of_archives_without_training_rows(spark, photographs, tmp_path):
    with tarfile.open(tmp_path / "val.0.tar", "w") as tar:
        for name in ("1.jpg", "2.jpg"):
            tar.add(photographs / "china" / name, name)
    (tmp_path / "val.txt").write_text("1.jpg 4\n2.jpg 0\n")
    data = data_of("image_tar", tmp_path, resize=(8, 6))
    done = lmdb_of(spark, data, str(tmp_path / "rows"), partitions=1, testing=True)
    assert done.rows == 2
    assert [(key, datum.label, datum.shape) for key, datum in records(tmp_path / "rows")] == [
        (b"00000000_1.jpg", 4, (3, 8, 6)),
        (b"00000001_2.jpg", 0, (3, 8, 6)),
    ]


def test_databases_in_an_object_store(spark, cifar, photographs, monkeypatch):
    directory, images, labels, _ = cifar
    with s3_server("rows") as server:
        reach(server, monkeypatch)
        for name, partitions in (("one", 1), ("several", 2)):
            data = data_of("cifar10", directory, s3_endpoint=server.endpoint)
            assert lmdb_of(spark, data, f"s3://rows/{name}", partitions=partitions).rows == 60
            found = [row for where in databases_in(server, name) for row in where]
            assert sorted(found) == sorted(
                (image.tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)
            )
        keys = ["one/data.mdb", "several/part-00000/data.mdb", "several/part-00001/data.mdb"]
        assert server.keys("rows") == keys
        with pytest.raises(DataError, match="there is something already"):
            lmdb_of(spark, data, "s3://rows/one", partitions=1)
        strict = data_of("image_folder", photographs, keep="encoded", s3_endpoint=server.endpoint)
        with pytest.raises(DataError, match=r"1 of 15 rows are damaged"):
            lmdb_of(spark, strict, "s3://rows/none", partitions=2)
        assert server.keys("rows") == keys, "nothing is left of what failed"
        with pytest.raises(DataError, match=r"nothing to write s3:// with, and it is Spark"):
            parquet_of(spark, data, "s3://rows/table", keys=2)


def databases_in(server, name):
    """Pixels and labels of each database under a name in the bucket `rows`."""
    for key in server.keys("rows"):
        if key.startswith(f"{name}/"):
            with tempfile.TemporaryDirectory() as spool:
                server.client().download_file("rows", key, str(Path(spool) / "data.mdb"))
                yield [(bytes(datum.data), datum.label) for _, datum in records(spool)]


def test_numbers_as_float_data(spark, tmp_path):
    rows = [([float(row), row / 2, -1.0], row % 3) for row in range(20)]
    spark.createDataFrame(rows, "image array<float>, label int").write.parquet(str(tmp_path / "rows.parquet"))
    done = lmdb_of(spark, data_of("parquet", tmp_path / "rows.parquet"), str(tmp_path / "rows"), partitions=1)
    found = [datum for _, datum in records(tmp_path / "rows")]
    assert done.rows == 20
    assert all(datum.shape == (3, 1, 1) for datum in found)
    assert sorted((datum.float_data.tolist(), datum.label) for datum in found) == sorted(rows)


def test_parquet_by_key(spark, cifar, tmp_path):
    directory, images, labels, _ = cifar
    tmp_path = tmp_path / "a b%20c"
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    hadoop.set("fs.defaultFS", "hdfs://127.0.0.1:1")  # as on a cluster; nobody is there
    try:
        done = parquet_of(spark, data_of("cifar10", directory), str(tmp_path / "rows"), keys=4)
    finally:
        hadoop.unset("fs.defaultFS")
    assert (done.rows, done.parts) == (60, 4)
    assert {path.name for path in (tmp_path / "rows").glob("key=*")} == {f"key={key}" for key in range(4)}
    frame = spark.read.parquet(f"file://{tmp_path}/rows")
    assert frame.columns == ["id", "data", "label", "key"]
    found = sorted(frame.collect(), key=lambda row: row.id)
    assert [row.id for row in found] == list(range(60))
    assert all(row.key == row.id % 4 for row in found)
    assert [(bytes(row.data), row.label) for row in found] == [
        (image.tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)
    ]


def test_parquet_of_files_and_of_damaged_ones(spark, photographs, tmp_path):
    settings = {"keep": "encoded", "resize": (8, 8), "corrupt_share": 0.1}
    done = parquet_of(spark, data_of("image_folder", photographs, **settings), str(tmp_path / "rows"), keys=1)
    assert (done.rows, done.damage.rows) == (14, 1)
    assert "short.jpg" in done.damage.examples[0]
    found = spark.read.parquet(str(tmp_path / "rows")).collect()
    assert all(Image.open(io.BytesIO(row.data)).size[0] > 8 for row in found)
    strict = data_of("image_folder", photographs, resize=(8, 8), corrupt_share=0.01)
    with pytest.raises(DataError, match=r"1 of 15 rows are damaged.*short\.jpg"):
        parquet_of(spark, strict, str(tmp_path / "none"), keys=1)
    with pytest.raises(DataError, match=r"1 of 15 rows are damaged.*short\.jpg"):
        lmdb_of(spark, strict, str(tmp_path / "none"), partitions=1)
    assert names_in(tmp_path) == ["rows"], "nothing is left of what failed"


def test_numbers_as_parquet(spark, tmp_path):
    rows = [(float(row), row * 2, row % 2) for row in range(9)]
    spark.createDataFrame(rows, "a float, b int, label int").write.parquet(str(tmp_path / "rows.parquet"))
    data = data_of("parquet", tmp_path / "rows.parquet", features=("a", "b"))
    parquet_of(spark, data, str(tmp_path / "rows"), keys=1)
    found = spark.read.parquet(str(tmp_path / "rows")).collect()
    assert sorted((row.data, row.label) for row in found) == sorted(([a, float(b)], label) for a, b, label in rows)


def test_a_place_that_is_taken(spark, cifar, tmp_path):
    (tmp_path / "file").write_text("mine")
    for write in (
        lambda: lmdb_of(spark, data_of("cifar10", cifar[0]), str(tmp_path), partitions=1),
        lambda: parquet_of(spark, data_of("cifar10", cifar[0]), str(tmp_path / "file"), keys=1),
    ):
        with pytest.raises(DataError, match="there is something already; remove it, or give another place"):
            write()
    assert (tmp_path / "file").read_text() == "mine"


def test_rows_that_are_no_records(spark, tmp_path):
    rows = [([0.5, 1.0], 0.5)]
    spark.createDataFrame(rows, "image array<float>, label float").write.parquet(str(tmp_path / "rows.parquet"))
    with pytest.raises(
        DataError, match=r"column label holds 0\.5; the label of a record is a whole number: correct"
    ):
        lmdb_of(spark, data_of("parquet", tmp_path / "rows.parquet"), str(tmp_path / "rows"), partitions=1)
    with pytest.raises(DataError, match="the columns are image; a record holds one input and one label: set data"):
        lmdb_of(
            spark,
            data_of("parquet", tmp_path / "rows.parquet", targets=("image",)),
            str(tmp_path / "rows"),
            partitions=1,
        )
    assert names_in(tmp_path) == ["rows.parquet"]


def test_hdf5_files_whose_labels_are_kept_as_fractions(spark, tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(4, 3) / 2
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["data"], file["label"] = values, np.array([3, 0, -1, 2], np.float32)
    data = data_of("hdf5", tmp_path / "rows.h5", image="data")
    assert lmdb_of(spark, data, str(tmp_path / "lmdb"), partitions=1).rows == 4
    found = [datum for _, datum in records(tmp_path / "lmdb")]
    assert [datum.label for datum in found] == [3, 0, -1, 2]
    parquet_of(spark, data, str(tmp_path / "parquet"), keys=1)
    rows = spark.read.parquet(str(tmp_path / "parquet")).orderBy("id").collect()
    assert [(row.data, row.label) for row in rows] == list(zip(values.tolist(), [3, 0, -1, 2], strict=True))
