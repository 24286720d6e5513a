"""Preparation on a real session: sources, splits, input kinds, refusals, atomicity and reuse."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyspark import TaskContext
from pyspark.errors import PySparkException
from pyspark.sql import functions as F

from formats import cifar_directory, random_rows, write_cifar, write_mnist
from opened import partitions, pixels_and_labels, rows_at
from prepared import as_set, open_prepare_session, rows_of, write_parquet
from sparknet.config import Data
from sparknet.data.rows.table_encoding import Category, Feature, TableEncoding
from sparknet.data.shards.manifest import Manifest
from sparknet.data.sources import digits
from sparknet.errors import ClusterError, DataError, MissingDependency
from sparknet.spark.frames.data_sources import register
from sparknet.spark.preparing import prepare as preparation
from sparknet.spark.preparing.prepare import Frames, prepare, prepare_frames

pytestmark = pytest.mark.spark

DIGITS = Data(source="digits", validation_fraction=0.2)


@pytest.fixture(scope="module")
def spark():
    session = open_prepare_session("test_prepare")
    yield session
    session.stop()


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def no_job(monkeypatch):
    """Fails the test when a preparation runs a job."""

    def refuse(*arguments):
        raise AssertionError("a job was run")

    return lambda: monkeypatch.setattr(preparation, "_run_job", refuse)


def fixed(values, kind):
    return pa.array(list(values), pa.list_(kind))


def test_digits(spark, store):
    directory, manifest = prepare(spark, DIGITS, store=store, seed=3, workers=2)
    assert directory == store / manifest.fingerprint[:16]
    assert manifest == Manifest.load(directory)
    assert (manifest.rows.input.shape, manifest.rows.input.dtype, manifest.rows.classes) == ((1, 8, 8), "uint8", 10)
    assert manifest.validation_rows == pytest.approx(0.2 * 1797, abs=1)
    train, validation = rows_of(directory, manifest, "train"), rows_of(directory, manifest, "validation")
    expected = pixels_and_labels(digits, digits.read(partitions(digits)[0]))
    assert sorted(as_set(*train) + as_set(*validation)) == as_set(*expected)
    assert list(manifest.columns[1].counts) == np.bincount(train[1]).tolist()
    np.testing.assert_allclose(manifest.columns[0].channel_mean, [train[0].mean()])
    np.testing.assert_allclose(manifest.columns[0].load_mean_image(directory), train[0].mean(axis=0), rtol=1e-6)
    assert sorted(path.name for path in directory.iterdir()) == [
        "manifest.json",
        "mean-0.npy",
        "train-00000.arrow",
        "validation-00000.arrow",
    ]
    assert [path.name for path in store.iterdir()] == [directory.name]


def test_cifar_directory_with_its_own_test_batch(spark, store, tmp_path):
    train, test = cifar_directory(tmp_path / "cifar", rows=40)
    data = Data(source="cifar10", path=str(tmp_path / "cifar"), validation_path=str(tmp_path / "cifar"))
    directory, manifest = prepare(spark, data, store=store, seed=0)
    assert len(manifest.train) == 3
    assert as_set(*rows_of(directory, manifest, "train")) == as_set(*train)
    assert as_set(*rows_of(directory, manifest, "validation")) == as_set(*test)
    assert manifest.rows.input.shape == (3, 32, 32)
    np.testing.assert_allclose(manifest.columns[0].channel_mean, train[0].mean(axis=(0, 2, 3)))
    assert manifest.seed == 0
    assert manifest.source["source"] == "cifar10"


def test_mnist_with_a_share_held_out_in_small_shards(spark, store, tmp_path):
    rows = random_rows(500, (1, 28, 28))
    path = write_mnist(tmp_path / "mnist", "train", *rows, zipped=True)
    data = Data(source="mnist", path=str(path), validation_fraction=0.1, shard_megabytes=0.1)
    directory, manifest = prepare(spark, data, store=store, seed=1)
    assert manifest.validation_rows == pytest.approx(50, abs=1)
    assert len(manifest.train) == 4
    both = [rows_of(directory, manifest, split) for split in ("train", "validation")]
    assert sorted(as_set(*both[0]) + as_set(*both[1])) == as_set(*rows)


def test_a_source_may_be_taken_in_another_shape(spark, store, tmp_path):
    cifar_directory(tmp_path / "cifar")
    data = Data(source="cifar10", path=str(tmp_path / "cifar"), validation_fraction=0.5, shape=(3072,))
    assert prepare(spark, data, store=store, seed=1)[1].rows.input.shape == (3072,)


def test_the_sources_serve_any_spark_user(spark, tmp_path):
    (_, labels), (_, test_labels) = cifar_directory(tmp_path / "c")
    register(spark)
    frame = spark.read.format("cifar10").load(str(tmp_path / "c"))
    assert frame.schema.simpleString() == "struct<image:binary,label:bigint>"
    assert frame.rdd.getNumPartitions() == 3
    assert sorted(row.label for row in frame.select("label").collect()) == sorted(labels.tolist())
    assert {row.n for row in frame.select(F.length("image").alias("n")).collect()} == {3072}
    test = spark.read.format("cifar10").option("split", "test").load(str(tmp_path / "c"))
    assert test.count() == len(test_labels)
    assert spark.read.format("digits").load().count() == 1797
    rows = random_rows(30, (1, 28, 28))
    write_mnist(tmp_path / "m", "train", *rows)
    first = spark.read.format("mnist").load(str(tmp_path / "m")).first()
    assert (bytes(first.image), first.label) == (rows[0][0].tobytes(), rows[1][0])
    with pytest.raises(PySparkException, match="DataError: option split is 'both'; it must be 'train'"):
        spark.read.format("mnist").option("split", "both").load(str(tmp_path / "m")).count()


def test_a_large_file_is_read_by_several_tasks(spark, tmp_path):
    write_cifar(tmp_path / "all.bin", *random_rows(5_001, (3, 32, 32)))
    data = Data(source="cifar10", path=str(tmp_path / "all.bin"), validation_fraction=0.1)
    frame = rows_at(spark, data, validation=False)
    assert frame.rdd.getNumPartitions() == 2
    assert frame.count() == 5_001


def test_parquet_with_bytes(spark, store, tmp_path):
    images, labels = random_rows(90, (3, 4, 4), classes=5)
    path = write_parquet(
        tmp_path / "p",
        {"pixels": [image.tobytes() for image in images], "class": pa.array(labels, pa.int16())},
    )
    data = Data(
        source="parquet", path=path, validation_fraction=0.3, image="pixels", label="class", shape=(3, 4, 4)
    )
    directory, manifest = prepare(spark, data, store=store, seed=5)
    assert manifest.validation_rows == pytest.approx(27, abs=3)
    assert (manifest.rows.input.name, manifest.rows.label.name) == ("pixels", "class")
    assert manifest.rows.classes == labels.max() + 1
    both = [rows_of(directory, manifest, split) for split in ("train", "validation")]
    assert sorted(as_set(*both[0]) + as_set(*both[1])) == as_set(images, labels)


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int32(), pa.uint8()])
def test_parquet_with_arrays_of_numbers(spark, store, tmp_path, kind):
    images, labels = random_rows(40, (6,), classes=3)
    path = write_parquet(
        tmp_path / "p",
        {
            "image": fixed(images.tolist(), kind),
            "label": pa.array(labels, pa.int8()),
            "held out": labels == 0,
        },
    )
    data = Data(source="parquet", path=path, validation_column="held out")
    directory, manifest = prepare(spark, data, store=store, seed=5)
    assert (manifest.rows.input.dtype, manifest.rows.input.shape) == ("float32", (6,))
    expected = images.astype(np.float32)
    for split, chosen in (("train", labels != 0), ("validation", labels == 0)):
        assert as_set(*rows_of(directory, manifest, split)) == as_set(expected[chosen], labels[chosen])


def test_parquet_from_two_sources_with_a_plain_number(spark, store, tmp_path):
    paths = [
        write_parquet(tmp_path / name, {"image": values, "label": [0, 1, 1]}, files=1)
        for name, values in (("a", [1.5, 2.5, 3.5]), ("b", [7.0, 8.0, 9.0]))
    ]
    data = Data(source="parquet", path=paths[0], validation_path=paths[1])
    directory, manifest = prepare(spark, data, store=store, seed=0)
    assert manifest.rows.input.shape == (1,)
    assert rows_of(directory, manifest, "train")[0].ravel().tolist() == [1.5, 2.5, 3.5]
    assert rows_of(directory, manifest, "validation")[0].ravel().tolist() == [7, 8, 9]
    assert manifest.columns[0].channel_mean == (2.5,)


def test_a_number_in_parquet_is_no_dotted_path(spark, store, tmp_path):
    path = write_parquet(tmp_path / "p", {"a.b": [1.0, 2.0], "la`bel": [0, 1]}, files=1)
    data = Data(source="parquet", path=path, validation_fraction=0.5, image="a.b", label="la`bel")
    assert prepare(spark, data, store=store, seed=0)[1].train_rows == 1


def test_any_frame(spark, store, no_job):
    frame = spark.range(0, 100, 1, 4).select(
        F.array(F.col("id").cast("double"), F.lit(1)).alias("x"), (F.col("id") % 4).alias("y")
    )
    data = replace(DIGITS, image="x", label="y", shape=(2, 1))
    directory, manifest = prepare_frames(spark, Frames(train=frame), data, store=store, seed=0)
    assert (manifest.rows.input.shape, manifest.rows.classes) == ((2, 1), 4)
    assert manifest.train_rows + manifest.validation_rows == 100
    assert manifest.validation_rows == pytest.approx(20, abs=4)
    no_job()
    assert prepare_frames(spark, Frames(train=frame), data, store=store, seed=0) == (directory, manifest)


def test_frames_that_differ_in_rows_only_are_told_apart(spark, store):
    data = replace(DIGITS, image="x", label="y", validation_fraction=0.5)
    means = []
    for value in (1.0, 2.0):
        frame = spark.createDataFrame([(value, 0), (value, 1)], "x double, y int").coalesce(1)
        means.append(
            prepare_frames(spark, Frames(train=frame), data, store=store, seed=0)[1].columns[0].channel_mean[0]
        )
    assert means == [1.0, 2.0]


def test_a_frame_has_no_second_source(spark, store):
    data = Data(source="parquet", path="x", validation_path="y")
    with pytest.raises(DataError, match=r"data.validation_path is 'y'; a DataFrame marks or draws"):
        prepare_frames(spark, Frames(train=spark.range(3)), data, store=store, seed=0)


def test_the_same_is_not_prepared_twice(spark, store, tmp_path, no_job):
    cifar_directory(tmp_path / "cifar")
    data = Data(source="cifar10", path=str(tmp_path / "cifar"), validation_path=str(tmp_path / "cifar"))
    first = prepare(spark, data, store=store, seed=0)
    no_job()
    assert prepare(spark, replace(data, mean="image", scale=0.5), store=store, seed=9) == first


def test_what_matters_makes_another_preparation(spark, store, tmp_path):
    cifar_directory(tmp_path / "cifar", rows=4, batches=1)
    batch = tmp_path / "cifar" / "data_batch_1.bin"
    data = Data(source="cifar10", path=str(batch), validation_fraction=0.5)
    seen = {prepare(spark, data, store=store, seed=0)[0]}
    for other, seed in ((data, 1), (replace(data, classes=12), 0), (replace(data, shard_megabytes=1.0), 0)):
        seen.add(prepare(spark, other, store=store, seed=seed)[0])
    os.utime(batch, ns=(1, 1))
    seen.add(prepare(spark, data, store=store, seed=0)[0])
    assert len(seen) == 5


def test_a_damaged_preparation_is_refused_with_the_remedy(spark, store):
    directory, _ = prepare(spark, DIGITS, store=store, seed=3)
    (directory / "validation-00000.arrow").unlink()
    with pytest.raises(DataError, match=rf"shard is missing; restore it or delete {directory} to prepare"):
        prepare(spark, DIGITS, store=store, seed=3)


def test_concurrent_preparations_of_the_same_both_succeed(spark, store, monkeypatch):
    import threading

    both = threading.Barrier(2)
    run_job = preparation._run_job

    def at_once(*arguments):
        reports = run_job(*arguments)
        both.wait(60)  # neither publishes before both have prepared
        return reports

    monkeypatch.setattr(preparation, "_run_job", at_once)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(prepare, spark, DIGITS, store=store, seed=8) for _ in range(2)]
        results = [future.result(120) for future in futures]
    assert results[0] == results[1]
    assert [path.name for path in store.iterdir()] == [results[0][0].name]


def test_leftovers_of_failed_attempts_are_removed(spark, store, monkeypatch):
    run_job = preparation._run_job

    def littered(task, plan):
        reports, hidden = run_job(task, plan), Path(plan.directory)
        (hidden / "train-00000-ffff-0000.arrow").write_bytes(b"half")
        (hidden / ".train-00001-ffff-0000.arrow.part").write_bytes(b"half")
        return reports

    monkeypatch.setattr(preparation, "_run_job", littered)
    directory, _ = prepare(spark, DIGITS, store=store, seed=4)
    assert len(list(directory.iterdir())) == 4


def test_a_task_whose_worker_dies_is_tried_again_and_its_rows_count_once(spark, store, tmp_path):
    fired = tmp_path / "fired"

    def dies_once(batches):
        for _ in batches:
            context = TaskContext.get()
            first = 1000 * context.partitionId()
            for part in range(10):
                if part == 7 and context.partitionId() == 0 and context.attemptNumber() == 0:
                    fired.write_text(str(len(list(store.glob(".preparing-*/*.arrow")))))
                    os._exit(1)
                ids = np.arange(first + 100 * part, first + 100 * (part + 1))
                yield pa.record_batch({"x": ids.astype(np.float32), "y": ids % 10})

    frame = spark.range(0, 2, 1, 2).mapInArrow(dies_once, "x float, y bigint")
    data = replace(DIGITS, image="x", label="y", shape=(1,), shard_megabytes=0.001)
    directory, manifest = prepare_frames(spark, Frames(train=frame), data, store=store, seed=0)
    assert fired.exists()
    parts = [rows_of(directory, manifest, split)[0].ravel() for split in ("train", "validation")]
    assert sorted(np.concatenate(parts).astype(int).tolist()) == list(range(2000))
    assert len(list(directory.glob("*.arrow"))) == len(manifest.train) + len(manifest.validation)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
@pytest.mark.parametrize("stage", ["_run_job", "assemble", "publish"])
def test_a_failure_at_any_stage_leaves_nothing(spark, store, monkeypatch, stage, error):
    def fail(*arguments, **named):
        raise error("stop")

    monkeypatch.setattr(preparation, stage, fail)
    with pytest.raises(DataError if error is OSError else error):
        prepare(spark, DIGITS, store=store, seed=4)
    assert list(store.iterdir()) == []


def test_an_interrupt_in_the_middle_of_the_job_leaves_nothing(store, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from pyspark.sql import SparkSession, functions as F
            from sparknet.config import Data
            from sparknet.spark.preparing.prepare import Frames, prepare_frames

            store, started = map(Path, sys.argv[1:])

            def endless(batches):
                import pyarrow as pa
                for batch in batches:
                    started.touch()
                    while True:
                        yield pa.record_batch({"x": [1.0] * 1000, "y": [0] * 1000})

            spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
            frame = spark.range(0, 2, 1, 2).mapInArrow(endless, "x double, y bigint")
            data = Data(source="digits", validation_fraction=0.5, image="x", label="y")
            try:
                prepare_frames(spark, Frames(train=frame), data, store=store, seed=0)
            except KeyboardInterrupt:
                print("interrupted")
            """
        )
    )
    started = tmp_path / "started"
    process = subprocess.Popen(
        [sys.executable, str(program), str(store), str(started)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
    )
    try:
        wait_for(lambda: started.exists() and any(store.glob(".preparing-*")), process)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "interrupted" in out, errors
    assert list(store.iterdir()) == []


def wait_for(condition, process):
    """Poll until the condition holds; fails when the process ends first."""
    while not condition():
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(process.communicate()[1])


PARQUET = {
    "x": pa.array([[1.0, 2.0]] * 4),
    "b": [b"abc"] * 4,
    "n": pa.array([[1.0, 2.0], [1.0, None], [1.0, 2.0], [1.0, 2.0]]),
    "ragged": pa.array([[1.0], [1.0], [1.0, 2.0], [1.0]]),
    "name": ["a", "b", "c", "d"],
    "y": [0, 1, 2, 0],
    "negative": [0, 1, -2, 0],
    "missing": [0, 1, None, 0],
    "v": [True, False, False, True],
    "never": [False] * 4,
    "always": [True] * 4,
    "maybe": [True, False, None, False],
    "f": [0.5, 1.0, 2.0, 3.0],
}

REFUSED = {
    "image column": (
        {"image": "pixels"},
        r"column pixels is not in the data, which has x, b, .*set data.image",
    ),
    "label column": ({"label": "klass"}, r"column klass is not in the data.*set data.label"),
    "validation column": ({"validation_column": "w"}, r"column w is not in .*set data.validation_column"),
    "text for an image": ({"image": "name"}, "column name is string; the input must be binary, an array"),
    "number for a mark": ({"validation_column": "y"}, "column y is bigint; it must be boolean"),
    "bytes without a shape": ({"image": "b"}, r"column b is binary, .*set data.shape"),
    "bytes of another width": (
        {"image": "b", "shape": (2, 2)},
        r"column b: row 0 of partition \d has 3 values; shape \(2, 2\) takes 4",
    ),
    "array of another width": (
        {"shape": (3,)},
        r"column x: row 0 of partition \d has 2 values; shape \(3,\) takes 3",
    ),
    "arrays of several widths": ({"image": "ragged"}, r"column ragged: row \d of partition \d has 2 values"),
    "null in an array": ({"image": "n"}, "column n: row 1 of partition 0 holds a null"),
    "null label": ({"label": "missing"}, r"column missing: row \d of partition \d is null"),
    "null mark": ({"validation_column": "maybe"}, r"column maybe: row \d of partition \d is null"),
    "negative label": (
        {"label": "negative", "classes": 3},
        r"column negative, partition \d: row \d has label -2; labels must be 0 to 2",
    ),
    "label beyond the classes": (
        {"classes": 2},
        r"column y, partition \d: row \d has label 2; labels must be 0 to 1",
    ),
    "no validation rows": (
        {"validation_column": "never"},
        "validation set is empty; no row has never = true",
    ),
    "no training rows": ({"validation_column": "always"}, "train set is empty; no row has always = false"),
    "too small a share": (
        {"validation_column": "", "validation_fraction": 1e-9},
        "validation set is empty; validation_fraction is 1e-09 of too few rows",
    ),
}


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("parquet") / "p", PARQUET, files=1)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_rows(spark, store, parquet, case):
    keys, message = REFUSED[case]
    data = Data(
        **{
            "source": "parquet",
            "path": parquet,
            "image": "x",
            "label": "y",
            "validation_column": "v",
            **keys,
        }
    )
    with pytest.raises(DataError, match=message) as raised:
        prepare(spark, data, store=store, seed=0)
    assert len(str(raised.value).splitlines()) == 1
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert not store.exists() or list(store.iterdir()) == []


def test_words_become_numbers_and_the_manifest_says_how(spark, store, tmp_path):
    path = write_parquet(
        tmp_path / "p",
        {"size": [1.0, 2.0, 3.0, 4.0], "colour": ["red", "blue", "red", "blue"], "animal": ["dog", "cat"] * 2},
    )
    data = Data(source="parquet", path=path, features=("size", "colour"), label="animal", validation_fraction=0.5)
    directory, manifest = prepare(spark, data, store=store, seed=0)
    assert manifest == Manifest.load(directory)
    assert manifest.table == TableEncoding(
        features=(Feature(name="size"), Feature(name="colour", words=("blue", "red"), width=2)),
        categories={"animal": Category(words=("cat", "dog"))},
    )
    assert (manifest.rows.classes, manifest.rows.input.shape) == (2, (3,))
    both = [rows_of(directory, manifest, split) for split in ("train", "validation")]
    expected = np.array([[1, 0, 1], [2, 1, 0], [3, 0, 1], [4, 1, 0]], np.float32)
    assert sorted(as_set(*both[0]) + as_set(*both[1])) == as_set(expected, [1, 0, 1, 0])


def test_sources_of_different_kinds(spark, store, tmp_path):
    paths = [
        write_parquet(tmp_path / name, {"image": image, "label": [0]}, files=1)
        for name, image in (("a", [b"x"]), ("b", [1.0]))
    ]
    data = Data(source="parquet", path=paths[0], validation_path=paths[1], shape=(1,))
    with pytest.raises(DataError, match="column image is binary in training and float in validation rows"):
        prepare(spark, data, store=store, seed=0)


def test_partitions_of_different_widths(spark, store):
    frame = spark.range(0, 4, 1, 2).selectExpr("if(id < 2, array(1.0, 2.0), array(1.0)) as x", "id % 2 as y")
    data = replace(DIGITS, image="x", label="y")
    with pytest.raises(DataError, match=r"column x has rows of shape \(2,\) in one partition and \(1,\)"):
        prepare_frames(spark, Frames(train=frame), data, store=store, seed=0)


def test_no_rows(spark, store):
    frame = spark.range(0).selectExpr("cast(id as float) as x", "id as y")
    with pytest.raises(DataError, match="the data have no rows"):
        prepare_frames(spark, Frames(train=frame), replace(DIGITS, image="x", label="y"), store=store, seed=0)
    assert list(store.iterdir()) == []


def test_fewer_rows_than_workers(spark, store, parquet):
    data = Data(source="parquet", path=parquet, image="x", label="y", validation_column="v")
    with pytest.raises(DataError, match=r"2 training rows for 3 workers; .*set run.workers to a smaller"):
        prepare(spark, data, store=store, seed=0, workers=3)


BAD_SOURCES = {
    "no such file": (Data(source="cifar10", path="/nope", validation_fraction=0.1), "/nope: no such file"),
    "no such parquet": (Data(source="parquet", path="/nope", validation_fraction=0.1), "/nope: no such file"),
    "no parquet for the glob": (
        Data(source="parquet", path="/nope/*.parquet", validation_fraction=0.1),
        r"reading /nope/\*.parquet: Spark refused: \[PATH_NOT_FOUND\]",
    ),
    "digits have no test split": (
        Data(source="digits", validation_path="x"),
        "digits have neither files nor a test split",
    ),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources(spark, store, case):
    data, message = BAD_SOURCES[case]
    with pytest.raises(DataError, match=message) as raised:
        prepare(spark, data, store=store, seed=0)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_parquet(spark, store, tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"this is something else")
    data = Data(source="parquet", path=str(tmp_path / "x.parquet"), validation_fraction=0.1)
    with pytest.raises(DataError, match=r"Spark refused: \[FAILED_READ_FILE.*x.parquet") as raised:
        prepare(spark, data, store=store, seed=0)
    assert "\n" not in str(raised.value)


def test_a_bad_label_in_a_source_names_its_file(spark, store, tmp_path):
    images, labels = random_rows(10, (3, 32, 32))
    labels[7] = 200
    path = write_cifar(tmp_path / "bad.bin", images, labels)
    data = Data(source="cifar10", path=str(path), validation_fraction=0.1)
    with pytest.raises(DataError, match=r"^/.*bad.bin: row 7 has label 200; labels must be 0 to 9"):
        prepare(spark, data, store=store, seed=0)
    assert list(store.iterdir()) == []


def test_a_store_that_cannot_be_written(spark, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/store: the store cannot be written: .*set data.store"):
        prepare(spark, DIGITS, store=tmp_path / "file" / "store", seed=0)


def test_a_store_that_the_driver_does_not_share(spark, store, monkeypatch):
    run_job = preparation._run_job

    def elsewhere(task, plan):
        reports, hidden = run_job(task, plan), Path(plan.directory)
        for path in hidden.iterdir():
            path.unlink()
        return reports

    monkeypatch.setattr(preparation, "_run_job", elsewhere)
    with pytest.raises(DataError, match=r"was written by a worker but is not seen here; .*set data.store"):
        prepare(spark, DIGITS, store=store, seed=0)


def test_a_failure_in_the_users_own_code_is_a_cluster_error(spark, store):
    def broken(batches):
        raise ZeroDivisionError("theirs")
        yield from batches

    frame = spark.range(3).mapInArrow(broken, "x float, y long")
    with pytest.raises(ClusterError, match="failed in Spark: ZeroDivisionError: theirs"):
        prepare_frames(spark, Frames(train=frame), replace(DIGITS, image="x", label="y"), store=store, seed=0)


def test_a_missing_package_on_a_worker_names_its_install_command(spark, store):
    def missing(batches):
        raise MissingDependency("the digits need scikit-learn: pip install 'sparknet[demo]'")
        yield from batches

    frame = spark.range(3).mapInArrow(missing, "x float, y long")
    with pytest.raises(MissingDependency, match=r"^the digits need scikit-learn: pip install"):
        prepare_frames(spark, Frames(train=frame), replace(DIGITS, image="x", label="y"), store=store, seed=0)


def test_the_shards_are_relative_to_the_manifest(spark, store, tmp_path):
    directory, manifest = prepare(spark, DIGITS, store=store, seed=0)
    moved = directory.rename(tmp_path / "moved")
    assert all(not Path(shard.path).is_absolute() for shard in manifest.train)
    assert len(manifest.train_table(moved).take(np.arange(5))["label"]) == 5
