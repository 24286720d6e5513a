"""Measuring a model on rows straight from a source: images and words, and damaged rows among them."""

import os
import sys
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.sql import SparkSession

from encoded import png
from formats import random_rows
from image_rows import as_batch
from models import built, model_on
from sparknet.config import Data, Net, Run, RunConfig
from sparknet.data.loading.transform import Normalise
from sparknet.data.rows import image_codec
from sparknet.data.rows.columns import Column, ImageForm
from sparknet.data.rows.table_encoding import Category, Feature, TableEncoding
from sparknet.data.shards.manifest import Manifest
from sparknet.data.shards.prepared import PreparedData
from sparknet.data.sources.opening import open_source
from sparknet.errors import DataError
from sparknet.spark.measure import MeasurePlan, data_at, measure_shards, measure_source, measure_validation
from sparknet.spark.preparing.prepare import prepare
from sparknet.training.run_files.state_bytes import weights_file

pytestmark = pytest.mark.spark

SHAPE = (3, 8, 8)
LABEL = Column(name="label", dtype="int64", shape=())


@pytest.fixture(scope="module")
def spark():
    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master("local[2]")
        .appName("test_measure")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


def measured_at(spark, model, config):
    """The model on the rows that `data_at` named."""
    return measure_source(spark, model, config, open_source(config.data, validation=True))


def config_of(data, net):
    return RunConfig(data=data, net=net, run=Run(workers=2, rounds=1))


def accuracy_of(model, images, labels):
    """Computed here, at once."""
    objective = built(model.description)
    inputs = torch.from_numpy(model.chain["image"](images))
    objective.module.eval()
    with torch.no_grad():
        return objective.measure(as_batch(inputs, torch.from_numpy(labels)))["accuracy"][0] / len(labels)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images with labels that the untrained net finds for about half of them; 4 of 60 files are damaged."""
    images, _ = random_rows(60, SHAPE)
    model = model_on(CNN, Data(source="digits", validation_fraction=0.5), shape=SHAPE, classes=4)
    with torch.no_grad():
        found = model.module(torch.from_numpy(model.chain["image"](images))).argmax(1).numpy()
    labels = np.where(np.arange(60) % 2, found, (found + 1) % 4)
    files = [png(image) for image in images]
    bad = [0, 1, 31, 59]
    for row in bad:
        files[row] = files[row][:-20]
    directory = tmp_path_factory.mktemp("photos") / "p"
    directory.mkdir()
    table = pa.table({"image": pa.array(files, pa.binary()), "label": labels})
    for part in range(3):
        pq.write_table(table.slice(20 * part, 20), directory / f"{part}.parquet")
    return str(directory), np.delete(images, bad, 0), np.delete(labels, bad)


CNN = Net(name="digits_cnn", arguments={"width": 4})


def test_encoded_images_are_measured_and_damaged_ones_left_out(spark, photos):
    path, images, labels = photos
    data = Data(source="parquet", path=path, validation_fraction=0.5, corrupt_share=0.1)
    model = model_on(CNN, data, shape=SHAPE, classes=4)
    config = config_of(data_at(data, path), CNN)
    measured = measured_at(spark, model, config)
    expected = accuracy_of(model, images, labels)
    assert 0.3 < expected < 0.7
    assert (measured.rows, measured.skipped) == (56, 4)
    assert measured.accuracy == pytest.approx(expected)


def test_too_many_damaged_images_are_an_error(spark, photos):
    path, _, _ = photos
    data = Data(source="parquet", path=path, validation_fraction=0.5, corrupt_share=0.05)
    model = model_on(CNN, data, shape=SHAPE, classes=4)
    with pytest.raises(DataError, match=r"^4 of 60 rows are damaged, a share of 0.067; at most 0.05 may be"):
        measured_at(spark, model, config_of(data_at(data, path), CNN))


def test_images_are_resized_for_the_test_as_for_training(spark, photos, tmp_path):
    path, images, labels = photos
    large = images.repeat(2, axis=2).repeat(2, axis=3)
    table = pa.table({"image": pa.array([png(image) for image in large], pa.binary()), "label": labels})
    pq.write_table(table, tmp_path / "large.parquet")
    data = Data(source="parquet", path=path, validation_fraction=0.5, resize=(8, 8))
    model = model_on(CNN, data, shape=SHAPE, classes=4)
    config = config_of(data_at(data, str(tmp_path / "large.parquet")), CNN)
    measured = measured_at(spark, model, config)
    assert (measured.rows, measured.skipped) == (56, 0)
    # halving an image whose pixels were doubled gives it back
    assert measured.accuracy == pytest.approx(accuracy_of(model, images, labels))
    unscaled = replace(config, data=replace(config.data, resize=()))
    with pytest.raises(DataError, match=r"is an image of 16 x 16 .*set data.resize"):
        measured_at(spark, model, unscaled)


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
def test_prepared_rows_measure_the_same_however_they_are_kept(spark, photos, tmp_path, keep):
    path, images, labels = photos
    data = Data(source="parquet", path=path, validation_path=path, corrupt_share=0.1, keep=keep)
    form = ImageForm() if keep == "encoded" else None
    model = model_on(CNN, data, shape=SHAPE, classes=4)
    rows = model.description.rows
    stored = rows.with_input(replace(rows.input, image=form))
    model = replace(model, description=replace(model.description, rows=stored))
    measured = measure_validation(spark, model, config_of(data, CNN), store=tmp_path / "store", note=print)
    assert measured.rows == 56
    assert measured.accuracy == pytest.approx(accuracy_of(model, images, labels))


def test_a_net_of_squares_is_rebuilt_for_squares():
    data = Data(source="parquet", path="p", validation_fraction=0.5, crop=28)
    net = Net(name="lenet")
    small = model_on(net, replace(data, crop=0), shape=(1, 28, 28), classes=10)
    stored = small.description.rows.with_input(Column(name="image", dtype="uint8", shape=(1, 40, 32)))
    large = replace(small.description, rows=stored, data=data)
    plan = MeasurePlan(
        config=config_of(data, net),
        description=large,
        weights=weights_file(small.module),
        chain={"image": Normalise(mean=None, scale=1.0, crop=28)},
    )
    measured = plan.objective().measure(as_batch(torch.zeros(2, 1, 28, 28), torch.zeros(2, dtype=torch.int64)))
    assert measured["loss"][0] > 0


def test_files_are_decoded_by_as_many_threads_as_said_which_end(spark, photos, tmp_path, monkeypatch):
    path, _, _ = photos
    data = Data(source="parquet", path=path, validation_path=path, corrupt_share=0.1, keep="encoded", threads=3)
    model, config = model_on(CNN, data, shape=SHAPE, classes=4), config_of(data, CNN)
    directory, _ = prepare(spark, data, store=tmp_path / "store", seed=0)
    seen = set()
    decode_into = image_codec.decode_into

    def decode(*arguments, **keywords):
        seen.add(threading.current_thread().name)
        decode_into(*arguments, **keywords)

    monkeypatch.setattr(image_codec, "decode_into", decode)
    plan = MeasurePlan(
        config=config,
        description=model.description,
        weights=weights_file(model.module),
        chain=model.chain,
        data=PreparedData.of(directory, Manifest.load(directory)),
    )
    parts = pa.record_batch({"id": pa.array([0, 1])})
    assert sum(report["rows"] for report in measure_shards(plan, iter([parts]))) == 56
    assert seen
    assert all(name.startswith("sparknet-decode") for name in seen)
    assert not seen & {thread.name for thread in threading.enumerate()}


def test_what_spark_refuses_to_read_is_told_in_one_line(spark, tmp_path):
    data = Data(source="parquet", path="p", validation_fraction=0.5)
    model = model_on(CNN, data, shape=SHAPE, classes=4)
    with pytest.raises(DataError, match=r"reading .*\.parquet: Spark refused: \[PATH_NOT_FOUND\]") as raised:
        measured_at(spark, model, config_of(data_at(data, f"{tmp_path}/*.parquet"), CNN))
    assert "\n" not in str(raised.value)


def test_words_are_encoded_as_the_model_learned_them(spark, tmp_path):
    rows = {"size": [1.0, 2.0, 3.0], "colour": ["red", "blue", "red"], "animal": ["dog", "dog", "dog"]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    path = str(tmp_path / "t.parquet")
    data = Data(source="parquet", path=path, features=("size", "colour"), label="animal", validation_fraction=0.5)
    table = TableEncoding(
        features=(Feature(name="size"), Feature(name="colour", words=("blue", "green", "red"), width=3)),
        categories={"animal": Category(words=("cat", "dog"))},
    )
    net = Net(name="adult")
    model = model_on(net, data, shape=(4,), classes=2, dtype="float32", table=table)
    measured = measured_at(spark, model, config_of(data_at(data, path), net))
    inputs = np.array([[1, 0, 0, 1], [2, 1, 0, 0], [3, 0, 0, 1]], np.float32)
    assert measured.rows == 3
    assert measured.loss == pytest.approx(loss_of(model, inputs, np.array([1, 1, 1])), rel=1e-5)


def loss_of(model, inputs, labels):
    objective = built(model.description)
    with torch.no_grad():
        given, wanted = (column.name for column in model.description.rows.columns)
        fed = torch.from_numpy(model.chain[given](inputs))
        sums = objective.measure({given: fed, wanted: torch.from_numpy(labels)})
    return sums["loss"][0] / len(labels)
