"""Predictions and features as columns: held against the same net in this process, on all kinds of columns."""

import datetime
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark import cloudpickle
from pyspark.errors import PythonException
from pyspark.ml.linalg import DenseVector, Vectors, VectorUDT
from pyspark.sql import SparkSession
from pyspark.sql.types import ArrayType, DoubleType, StringType

from encoded import png
from formats import random_rows
from image_rows import image_rows
from models import model_of, model_on
from places import REPOSITORY
from sparknet.config import Data, Net, Objective
from sparknet.data.loading.transform import Normalise
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.rows.table_encoding import Category, Feature, TableEncoding
from sparknet.errors import ConfigError, DataError, NetError
from sparknet.spark.inference import InferenceSettings, Wanted, infer, model_file
from sparknet.training.run_files.saved_model import save_model
from sparknet.training.run_files.state_bytes import dump_weights
from watched_nets import noted

pytestmark = pytest.mark.spark

SHAPE = (3, 8, 8)
SUPPORT = str(Path(__file__).parents[2] / "support")
CNN = Net(name="digits_cnn", arguments={"width": 4})
ALL = Wanted(prediction="prediction", probability="probability", raw="raw")
IMAGES = Data(source="parquet", path="unused", validation_fraction=0.5)


@pytest.fixture(scope="module")
def spark():
    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master("local[2]")
        .appName("test_infer")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.executorEnv.PYTHONPATH", SUPPORT)
        .config("spark.python.daemon.module", "sparknet.spark.running.preimport")
        .config("spark.executorEnv.SPARKNET_PREIMPORT", "sparknet.spark.inference.task")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


@pytest.fixture
def watched(tmp_path):
    """A net over rows of 4 numbers, of 3 classes."""
    net = Net(name="watched_nets:Watched", arguments={"directory": str(tmp_path), "width": 4})
    return model_on(net, replace(IMAGES, image="x"), shape=(4,), classes=3, dtype="float32"), tmp_path


def scores_of(model, *inputs):
    """Of the net in this process."""
    names = [column.name for column in model.description.rows.inputs]
    given = dict(zip(names, inputs, strict=True))
    given = {name: torch.from_numpy(model.chain[name](values)) for name, values in given.items()}
    return model.objective.scores(given).double().numpy()


def vectors(spark, rows, *, partitions=1):
    frame = spark.createDataFrame([(at, row.tolist()) for at, row in enumerate(rows)], "id int, x array<double>")
    return frame.repartition(partitions, "id") if partitions > 1 else frame.coalesce(1)


def column(frame, name):
    """Cells as numpy has them."""
    cells = [row[name] for row in frame.select(name).collect()]
    return np.array([cell.toArray() if isinstance(cell, DenseVector) else cell for cell in cells])


# -- what comes out --


@pytest.mark.parametrize("batch", [7, 10_000])
def test_pixels_are_predicted_as_by_the_net_itself_and_all_other_columns_stay(spark, batch):
    images, _ = random_rows(60, SHAPE)
    model = model_on(CNN, IMAGES, shape=SHAPE, classes=4)
    day = datetime.date(2026, 1, 2)
    rows = [
        (at, image.tobytes(), Vectors.sparse(3, [1], [float(at)]), {"k": [at]}, day, {"a.b": at})
        for at, image in enumerate(images)
    ]
    frame = spark.createDataFrame(rows, ["id", "image", "v", "odd `name`.x", "day", "s"])
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(batch))
    found = infer(frame, model, ALL, settings=InferenceSettings(batch_size=16))
    assert found.columns == [*frame.columns, "raw", "probability", "prediction"]
    assert found.schema.fields[:6] == frame.schema.fields
    scores = scores_of(model, images)
    collected = found.collect()
    assert [row[:6] for row in map(tuple, collected)] == [tuple(row) for row in frame.collect()]
    np.testing.assert_allclose([row.raw.toArray() for row in collected], scores, rtol=1e-5, atol=1e-6)
    softmax = torch.softmax(torch.from_numpy(scores), 1).numpy()
    np.testing.assert_allclose([row.probability.toArray() for row in collected], softmax, rtol=1e-5, atol=1e-6)
    assert [row.prediction for row in collected] == scores.argmax(1).tolist()
    assert len(set(scores.argmax(1).tolist())) > 1, "the net must tell rows apart for this to say anything"


def test_rows_of_other_kinds_than_those_of_training_are_refused(spark):
    model = model_on(CNN, IMAGES, shape=SHAPE, classes=4)
    floats = vectors(spark, np.zeros((2, 192))).withColumnRenamed("x", "image")
    with pytest.raises(PythonException, match=r"DataError: column image is float32 .* trained on uint8"):
        infer(floats, model, ALL, settings=InferenceSettings(handle_invalid="skip")).collect()
    with pytest.raises(DataError, match=r"^column image is not in the data, which has id, x"):
        infer(vectors(spark, np.zeros((1, 2))), model, ALL)
    with pytest.raises(DataError, match=r"^column image is string; the input must be binary"):
        infer(spark.createDataFrame([("a",)], ["image"]), model, ALL)


def files(rows):
    """Encoded, with a null, half a file, another size and no image among them; and which these are."""
    images, _ = random_rows(rows, SHAPE)
    cells = [png(image) for image in images]
    bad = {1: None, 4: cells[4][:-30], 6: b"no image", 9: png(images[9].repeat(2, 1))}
    return images, [bad.get(at, cell) for at, cell in enumerate(cells)], sorted(bad)


@pytest.mark.parametrize("batch_size", [4, 64])
def test_rows_that_cannot_be_used_are_left_out_or_kept_as_nulls(spark, batch_size):
    images, cells, bad = files(12)
    model = model_on(CNN, IMAGES, shape=SHAPE, classes=4)
    frame = spark.createDataFrame(list(enumerate(cells)), "id int, image binary").coalesce(1)
    good = [at for at in range(12) if at not in bad]
    expected = scores_of(model, images[good])

    def found(mode):
        settings = InferenceSettings(batch_size=batch_size, handle_invalid=mode, threads=2)
        return infer(frame, model, ALL, settings=settings).drop("image").collect()

    skipped = found("skip")
    assert [row.id for row in skipped] == good
    np.testing.assert_allclose([row.raw.toArray() for row in skipped], expected, rtol=1e-5, atol=1e-6)
    kept = found("keep")
    assert [row.id for row in kept] == list(range(12))
    assert [row.id for row in kept if row.prediction is None] == bad
    assert all(row.raw is None and row.probability is None for row in kept if row.id in bad)
    assert [row.prediction for row in kept if row.id in good] == expected.argmax(1).tolist()


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (1, r"column image: row 1 of partition 0: the image is null"),
        (4, r"column image: row 4 of partition 0: .*handle_invalid to .skip. or .keep."),
        (6, r"column image: row 6 of partition 0"),
        (9, r"column image: row 9 of partition 0 is an image of 16 x 8 .*set data.resize"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(spark, at, message):
    images, cells, _ = files(12)
    rows = [(number, cells[number] if number == at else png(images[number])) for number in range(12)]
    frame = spark.createDataFrame(rows, "id int, image binary").coalesce(1)
    model = model_on(CNN, IMAGES, shape=SHAPE, classes=4)
    with pytest.raises(PythonException, match="DataError: " + message):
        infer(frame, model, ALL, settings=InferenceSettings(batch_size=4)).collect()


def test_no_rows_and_only_bad_rows_give_columns_all_the_same(spark):
    model = model_on(CNN, IMAGES, shape=SHAPE, classes=4)
    none = spark.createDataFrame([], "id int, image binary")
    assert infer(none, model, ALL).collect() == []
    bad = spark.createDataFrame([(1, None), (2, b"x")], "id int, image binary")
    kept = infer(bad, model, ALL, settings=InferenceSettings(handle_invalid="keep")).collect()
    assert [tuple(row[2:]) for row in kept] == [(None, None, None)] * 2
    assert infer(bad, model, ALL, settings=InferenceSettings(handle_invalid="skip")).collect() == []


# -- kinds of columns and of answers --


def test_vectors_arrays_and_lists_are_inputs_alike(spark, watched):
    model, _ = watched
    rows = np.array([[1, 0, 2, 0], [0, 0, 0, 3]], np.float32)
    expected = scores_of(model, rows)
    dense = [(Vectors.dense(row.tolist()),) for row in rows]
    sparse = [(Vectors.sparse(4, {at: float(row[at]) for at in np.flatnonzero(row).tolist()}),) for row in rows]
    in_rows = model.description.rows.with_input(Column(name="x", dtype="float32", shape=(2, 2)))
    square = replace(model, description=replace(model.description, rows=in_rows))
    flat, nested = ([(row.reshape(shape).tolist(),) for row in rows] for shape in ((4,), (2, 2)))
    for cells, given in ((dense, model), (sparse, model), (flat, model), (nested, square)):
        found = infer(spark.createDataFrame(cells, ["x"]), given, Wanted(raw="raw"))
        np.testing.assert_allclose(column(found, "raw"), expected, rtol=1e-5, atol=1e-6)


def test_a_table_is_encoded_with_the_words_of_training(spark, watched):
    model, _ = watched
    data = Data(source="csv", path="p", features=("size", "colour"), label="animal", validation_fraction=0.5)
    table = TableEncoding(
        features=(Feature(name="size"), Feature(name="colour", words=("blue", "green", "red"), width=3)),
        categories={"animal": Category(words=("ape", "bee", "cat"))},
    )
    model = model_on(model.description.net, data, shape=(4,), classes=3, dtype="float32", table=table)
    rows = [(1.0, "red", "kept"), (2.0, "blue", "kept"), (3.0, "mauve", "kept"), (None, "red", "kept")]
    frame = spark.createDataFrame(rows, "size double, colour string, other string").coalesce(1)
    wanted = Wanted(prediction="number", predicted_label="word", probability="p")
    found = infer(frame, model, wanted, settings=InferenceSettings(handle_invalid="keep")).collect()
    expected = scores_of(model, np.array([[1, 0, 0, 1], [2, 1, 0, 0]], np.float32)).argmax(1)
    assert [row.number for row in found] == [*expected.tolist(), None, None]
    assert [row.word for row in found] == [*(("ape", "bee", "cat")[at] for at in expected), None, None]
    assert {row.other for row in found} == {"kept"}
    with pytest.raises(PythonException, match=r"DataError: column colour: row 2 of partition 0 says 'mauve'"):
        infer(frame, model, wanted).collect()


def test_classes_that_were_numbered_come_back_as_the_label_has_them(spark, watched):
    model, _ = watched
    table = TableEncoding(categories={"label": Category(values=(-5, 7, 10))})
    model = replace(model, description=replace(model.description, table=table))
    rows = 300 * np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    found = infer(vectors(spark, rows), model, Wanted(prediction="p"))
    expected = np.array([-5, 7, 10])[scores_of(model, rows).argmax(1)]
    assert len(set(expected.tolist())) > 1
    assert column(found, "p").tolist() == expected.tolist()
    with pytest.raises(ConfigError, match="predicted_label is 'l', and the classes of the model have no names"):
        infer(vectors(spark, rows), model, Wanted(predicted_label="l"))


def numbers_of(target, *inputs, net="Sum", loss=""):
    names = [column.name for column in inputs]
    data = Data(source="parquet", path="p", inputs=tuple(names), targets=("y",), validation_fraction=0.5)
    rows = RowSchema(inputs=inputs, targets=(target,))
    return model_of(Net(name=f"watched_nets:{net}"), data, rows, objective=Objective(loss=loss))


def test_a_regressor_of_several_inputs_gives_numbers(spark):
    first, second = Column(name="a", dtype="float32", shape=(2,)), Column(name="b", dtype="float32", shape=(1,))
    model = numbers_of(Column(name="y", dtype="float32", shape=()), first, second)
    frame = spark.createDataFrame([([1.0, 2.0], 3.0), ([0.5, 0.0], -1.0)], ["a", "b"])
    found = infer(frame, model, Wanted(prediction="p", raw="r"))
    assert found.schema["p"].dataType == DoubleType()
    assert column(found, "p").tolist() == [33.0, -9.5]
    assert column(found, "r").tolist() == [[33.0], [-9.5]]
    with pytest.raises(ConfigError, match="probability is 'q', and the model gives numbers"):
        infer(frame, model, Wanted(prediction="p", probability="q"))


def test_targets_with_an_axis_give_arrays_and_logits_truth(spark):
    x = Column(name="x", dtype="float32", shape=(2,))
    frame = spark.createDataFrame([([0.5, -3.0],), ([1.0, 2.0],)], ["x"])
    model = numbers_of(Column(name="y", dtype="float32", shape=(2,)), x, net="Doubled")
    found = infer(frame, model, Wanted(prediction="p"))
    assert found.schema["p"].dataType == ArrayType(DoubleType())
    assert column(found, "p").tolist() == [[1.0, -6.0], [2.0, 4.0]]
    logits = numbers_of(
        Column(name="y", dtype="float32", shape=(2,)), x, net="Doubled", loss="binary_cross_entropy_with_logits"
    )
    found = infer(frame, logits, Wanted(prediction="p", probability="q"))
    assert column(found, "p").tolist() == [[1.0, 0.0], [1.0, 1.0]]
    expected = 1 / (1 + np.exp(-np.array([[1.0, -6.0], [2.0, 4.0]])))
    np.testing.assert_allclose(column(found, "q"), expected, rtol=1e-6)


CAFFE = """name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 16 dim: 2 dim: 4 dim: 4 } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 16 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""


def test_a_caffe_net_gives_predictions_and_blobs(spark):
    data = Data(source="parquet", path="p", image="data", validation_fraction=0.5)
    rows = image_rows((2, 4, 4), dtype="float32", classes=5, names=("data", "label"))
    chain = {"data": Normalise(mean=None, scale=2.0, mirror=True)}
    model = model_of(Net(prototxt=CAFFE), data, rows, chain=chain)
    values = np.random.default_rng(3).normal(size=(20, 2, 4, 4)).astype(np.float32)
    frame = spark.createDataFrame([(row.tolist(),) for row in values], ["data"]).coalesce(1)
    wanted = Wanted(prediction="p", raw="r", blobs={"conv": "conv features", "fc": "f"})
    found = infer(frame, model, wanted)
    # A mirrored row would be another one.
    expected = model.objective.infer({"data": torch.from_numpy(2 * values)}, ["conv", "fc"])
    assert column(found, "p").tolist() == expected[""].argmax(1).tolist()
    for name, blob in (("r", "fc"), ("f", "fc"), ("conv features", "conv")):
        np.testing.assert_allclose(column(found, name), expected[blob].flatten(1), rtol=1e-5, atol=1e-6)
    assert column(found, "conv features").shape == (20, 12)
    with pytest.raises(NetError, match=r"net small has no blob 'cnov': did you mean conv\? .*: data, label, conv"):
        infer(frame, model, Wanted(blobs={"cnov": "x"}))


def test_parts_of_a_module_are_features(spark, watched):
    model, _ = watched
    rows = np.random.default_rng(2).normal(size=(9, 4)).astype(np.float32)
    found = infer(vectors(spark, rows), model, Wanted(blobs={"act": "features"}))
    module, given = model.module, torch.from_numpy(model.chain["x"](rows))
    with torch.no_grad():
        np.testing.assert_allclose(column(found, "features"), module.act(module.first(given)), rtol=1e-5)
    with pytest.raises(NetError, match=r"has no blob 'frist': did you mean first\?"):
        infer(vectors(spark, rows), model, Wanted(blobs={"frist": "x"}))


# -- what it costs --


def test_the_net_runs_once_for_each_row_in_batches_as_asked(spark, watched):
    model, directory = watched
    for most in ("7", "10000"):
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", most)
        (directory / "given").unlink(missing_ok=True)
        frame = vectors(spark, np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
        settings = InferenceSettings(batch_size=16, handle_invalid="skip")
        found = infer(frame, model, replace(ALL, blobs={"act": "a"}), settings=settings)
        # A filter behind it, on two of its columns, and one on what was there before.
        chosen = found.where("prediction >= 0 and raw is not null and id >= 0")
        plan = chosen._jdf.queryExecution().executedPlan().toString()
        assert plan.count("ArrowEvalPython [") == 1, plan
        assert chosen.count() == 50
        assert noted(directory, "given") == [16, 16, 16, 2]


def test_nothing_runs_before_an_action_and_types_are_known(spark, watched):
    model, _ = watched
    frame = vectors(spark, np.zeros((3, 4)))
    before = spark.sparkContext.statusTracker().getJobIdsForGroup(None)
    found = infer(frame, model, Wanted(prediction="p", probability="q", raw="r", blobs={"act": "a"}))
    vector = VectorUDT()
    assert [field.dataType for field in found.schema.fields[2:]] == [vector, vector, DoubleType(), vector]
    assert spark.sparkContext.statusTracker().getJobIdsForGroup(None) == before
    found.collect()
    assert spark.sparkContext.statusTracker().getJobIdsForGroup(None) != before
    words = TableEncoding(categories={"label": Category(words=("a", "b", "c"))})
    named = replace(model, description=replace(model.description, table=words))
    assert infer(frame, named, Wanted(predicted_label="w")).schema["w"].dataType == StringType()


def test_a_net_is_built_once_in_a_worker_and_again_where_its_weights_are_others(spark, watched):
    model, directory = watched
    frame = vectors(spark, np.ones((64, 4)), partitions=16)
    (directory / "built").unlink()
    first = infer(frame, model, ALL).collect()
    built = noted(directory, "built")
    # The local session has two cores, so two workers at a time.
    assert len(built) == len(set(built)) <= 2
    infer(frame, model, ALL).count()
    assert infer(frame, model, replace(ALL, prediction="other")).collect()
    assert noted(directory, "built") == built
    with torch.no_grad():
        model.module.last.bias += 1
    second = infer(frame, model, ALL).collect()
    np.testing.assert_allclose(second[0].raw.toArray(), first[0].raw.toArray() + 1, rtol=1e-5)
    assert len(noted(directory, "built")) > len(built)


def test_weights_travel_as_one_file_and_not_with_the_task(spark, tmp_path, monkeypatch):
    width, hidden = 1000, 60_000
    net = Net(name="watched_nets:Watched", arguments={"directory": str(tmp_path), "width": width, "hidden": hidden})
    model = model_on(net, replace(IMAGES, image="x"), shape=(width,), classes=3, dtype="float32")
    assert sum(weights.numel() for weights in model.module.parameters()) > 60_000_000
    sent = []
    taken = model_file.SparkSession.addArtifact
    monkeypatch.setattr(
        model_file.SparkSession,
        "addArtifact",
        lambda self, *path, **kind: (sent.extend(path), taken(self, *path, **kind)),
    )
    pickled = []
    dumps = cloudpickle.dumps
    monkeypatch.setattr(cloudpickle, "dumps", lambda *given: pickled.append(dumps(*given)) or pickled[-1])
    frame = vectors(spark, np.ones((4, width)))
    expected = scores_of(model, np.ones((1, width), np.float32))[0]
    for _ in range(2):
        found = infer(frame, model, Wanted(raw="raw")).collect()
        np.testing.assert_allclose(found[3].raw.toArray(), expected, rtol=1e-4, atol=1e-5)
    assert len(sent) == 1
    assert Path(sent[0]).stat().st_size > 240e6
    assert pickled
    assert max(map(len, pickled)) < 100_000


# -- what is refused at once --


def test_columns_that_cannot_be_added_are_refused(spark, watched):
    model, _ = watched
    frame = vectors(spark, np.zeros((1, 4)))
    with pytest.raises(ConfigError, match="the column id is in the data already"):
        infer(frame, model, Wanted(prediction="ID"))
    with pytest.raises(ConfigError, match="no column is asked for"):
        infer(frame, model, Wanted())
    with pytest.raises(ConfigError, match="the columns P and p are one to Spark"):
        infer(frame, model, Wanted(prediction="p", raw="P"))
    with pytest.raises(ConfigError, match=r"handle_invalid is .drop.*error, skip, keep"):
        InferenceSettings(handle_invalid="drop")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        InferenceSettings(batch_size=0)


def test_several_targets_have_no_prediction_but_an_output(spark):
    x, targets = Column(name="x", dtype="float32", shape=(2,)), ("y", "z")
    rows = RowSchema(inputs=(x,), targets=tuple(Column(name=n, dtype="float32", shape=()) for n in targets))
    data = Data(source="parquet", path="p", inputs=("x",), targets=targets, validation_fraction=0.5)
    loss = Objective(loss="watched_nets:both")
    model = model_of(Net(name="watched_nets:Doubled"), data, rows, objective=loss)
    frame = spark.createDataFrame([([0.5, -3.0],)], ["x"])
    assert column(infer(frame, model, Wanted(raw="r")), "r").tolist() == [[1.0, -6.0]]
    with pytest.raises(NetError, match="trained on the targets y, z; a prediction is of one"):
        infer(frame, model, Wanted(prediction="p"))


def test_the_block_of_the_documentation_runs(spark, tmp_path):
    text = (REPOSITORY / "docs" / "inference.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    model = model_on(Net(name="adult"), replace(IMAGES, image="x"), shape=(4,), classes=3, dtype="float32")
    (tmp_path / "weights").write_bytes(dump_weights(model.module))
    save_model(tmp_path / "model", tmp_path / "weights", model.description, model.chain)
    rows = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)
    known = {"run_dir": tmp_path, "frame": vectors(spark, rows)}
    exec(block, known)
    assert known["predicted"].columns == ["id", "x", "probability", "prediction", "features"]
    assert column(known["predicted"], "prediction").tolist() == scores_of(model, rows).argmax(1).tolist()
