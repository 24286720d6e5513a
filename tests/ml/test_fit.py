"""Fits on a real session: nets of every kind, labels, nulls, runs that go on, and what is left behind."""

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark import cloudpickle
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F
from sklearn.datasets import load_digits
from torch import nn

from digits import open_test_session
from sparknet.caffe import zoo
from sparknet.errors import ClusterError, ConfigError, DataError, NetError, RunDirError, WorkerError
from sparknet.ml import SparkNetClassifier, SparkNetEstimator, SparkNetRegressor, train
from sparknet.spark.running import run as running

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark():
    session = open_test_session("local[2,4]")
    yield session
    session.stop()


@pytest.fixture(scope="module")
def digits(spark):
    """features: vector of 64 in 0..1; label 0..9; held: every fifth row."""
    images, labels = load_digits(return_X_y=True)
    rows = [
        (Vectors.dense(image / 16), int(label), at % 5 == 0)
        for at, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    frame = spark.createDataFrame(rows, ["features", "label", "held"]).repartition(3).cache()
    frame.count()
    return frame


def dense(*, width=32):
    """A class that no worker could import, as a notebook's."""

    class Dense(nn.Module):
        def __init__(self, classes=10):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))

        def forward(self, features):
            return self.layers(features)

    return Dense


def classifier(net, **options):
    defaults = {"numWorkers": 2, "learningRate": 0.05, "verbose": False, "validationIndicatorCol": "held"}
    return SparkNetClassifier(net=net, **{**defaults, **options})


def test_a_class_of_a_notebook_learns(digits):
    model = classifier(dense(), maxEpochs=8).fit(digits)
    assert model.summary.result["accuracy"] > 0.85
    history = model.history
    assert history["round"].tolist() == list(range(1, len(history) + 1))
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert history["validation_accuracy"].iloc[-1] == model.summary.result["accuracy"]
    assert model.hasSummary
    assert model.summary.totalIterations == history["iteration"].iloc[-1]
    assert isinstance(model.module(), nn.Module)
    assert (model.numClasses, model.labels[:2]) == (10, ["0", "1"])
    # It is the estimator's child, with its columns.
    assert model.getFeaturesCol() == "features"


def test_a_module_begins_with_its_own_weights(digits):
    torch.manual_seed(5)
    net = dense()()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    model = classifier(net, maxRounds=1, learningRate=1e-9).fit(digits)
    for name, tensor in model.module().state_dict().items():
        assert torch.allclose(tensor, before[name], atol=1e-6)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_zoo_entry_and_a_description_train_on_images(spark):
    images, labels = load_digits(return_X_y=True)
    rows = [
        (image.reshape(1, 8, 8).tolist(), int(label)) for image, label in zip(images[:400], labels, strict=False)
    ]
    frame = spark.createDataFrame(rows, "image array<array<array<float>>>, label int")
    for net in ("digits_cnn", zoo.digits_cnn(input_shape=(1, 8, 8), classes=10)):
        estimator = SparkNetClassifier(net=net, featuresCol="image", maxRounds=2, verbose=False)
        assert estimator.fit(frame).summary.result["rounds"] == 2


def test_a_loss_of_a_notebook_is_minimised(digits):
    def twice(outputs, targets):
        return 2 * nn.functional.cross_entropy(outputs, targets)

    one, two = (
        classifier(dense(), maxRounds=1, loss=loss, learningRate=1e-9).fit(digits).history["loss"].iloc[0]
        for loss in (None, twice)
    )
    assert two == pytest.approx(2 * one, rel=1e-4)


def test_a_regressor_and_an_estimator_of_several_inputs(spark):
    random = np.random.default_rng(0)
    rows = [
        (float(a), [float(b), float(c)], float(2 * a - b + 0.5 * c)) for a, b, c in random.normal(size=(600, 3))
    ]
    frame = spark.createDataFrame(rows, "a double, bc array<double>, y double")

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.bc = nn.Linear(1, 1), nn.Linear(2, 1)

        def forward(self, bc, a):
            return self.a(a) + self.bc(bc)

    options = {"labelCol": "y", "maxEpochs": 20, "learningRate": 0.05, "verbose": False, "inputCols": ["a", "bc"]}
    for kind in (SparkNetRegressor, SparkNetEstimator):
        model = kind(net=Sum, **options).fit(frame)
        assert model.module().a.weight.item() == pytest.approx(2, abs=0.05)
        assert model.module().bc.weight.tolist()[0] == pytest.approx([-1, 0.5], abs=0.05)


@pytest.mark.parametrize(
    ("expression", "labels"),
    [
        ("label * 10 - 5", ["-5", "5", "15"]),
        ("cast(label as double)", ["0", "1", "2"]),
        ("concat('digit ', label)", ["digit 0", "digit 1", "digit 2"]),
    ],
)
def test_labels_are_numbered_and_kept(digits, expression, labels):
    frame = digits.withColumn("label", F.expr(expression))
    model = classifier(dense(), maxEpochs=3).fit(frame)
    assert model.labels[:3] == labels
    assert model.summary.result["accuracy"] > 0.5
    # Numbers come back as they were, words as their number.
    said = {row[0] for row in model.transform(frame).select("prediction").distinct().collect()}
    numbers = [float(name) if not name.startswith("digit") else float(at) for at, name in enumerate(model.labels)]
    assert said <= set(numbers)
    assert len(said) > 5


def test_fractions_are_no_classes(digits):
    with pytest.raises(DataError, match="label"):
        classifier(dense()).fit(digits.withColumn("label", F.expr("label + 0.5")))


def test_predictions_stand_behind_the_columns_in_pysparks_order(digits, tmp_path):
    model = classifier(dense(), maxEpochs=3).fit(digits)
    found = model.transform(digits)
    assert found.columns == [*digits.columns, "rawPrediction", "probability", "prediction"]
    assert [field.dataType.simpleString() for field in found.schema][-3:] == ["vector", "vector", "double"]
    other = model.copy({model.predictionCol: "said", model.probabilityCol: "", model.rawPredictionCol: ""})
    assert other.transform(digits).columns == [*digits.columns, "said"]
    # Vectors that come straight from Parquet.
    digits.write.parquet(str(tmp_path / "rows.parquet"))
    read = digits.sparkSession.read.parquet(str(tmp_path / "rows.parquet"))
    assert len(model.transform(read).collect()) == digits.count()
    # Columns of other names, beside one that has the name of training and means something else.
    renamed = digits.withColumnsRenamed({"features": "pixels"}).withColumn("features", F.lit("no numbers"))
    again = model.copy().setFeaturesCol("pixels").transform(renamed)
    assert again.columns[: len(renamed.columns)] == renamed.columns
    said = [row.prediction for row in model.transform(digits).select("prediction").collect()]
    assert [row.prediction for row in again.select("prediction").collect()] == said
    assert model.copy().setFeaturesCol("pixels").featurize(renamed, ["layers"]).count() == digits.count()
    with pytest.raises(DataError, match="column other is not in the data"):
        model.copy().setFeaturesCol("other").transform(digits)
    with pytest.raises(
        ConfigError, match=r"inputCols is \['a', 'b'\], and the model was trained on features;.*as many"
    ):
        model.copy().setInputCols(["a", "b"]).transform(digits)


def test_a_single_logit_has_two_places(digits):
    frame = digits.withColumn("label", (F.col("label") > 4).cast("int"))

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 1)

        def forward(self, features):
            return self.layer(features)[:, 0]

    estimator = SparkNetEstimator(
        net=One, loss="binary_cross_entropy_with_logits", learningRate=0.5, maxEpochs=10, verbose=False
    )
    found = estimator.fit(frame).transform(frame)
    row = found.first()
    assert row["rawPrediction"].toArray().tolist() == pytest.approx(
        [-row["rawPrediction"][1], row["rawPrediction"][1]]
    )
    assert BinaryClassificationEvaluator().evaluate(found) > 0.8


def test_rows_with_nulls_are_named_or_left_out(digits):
    holes = digits.withColumn("features", F.when(F.col("label") != 3, F.col("features")))
    with pytest.raises(DataError, match="features"):
        classifier(dense(), maxRounds=1).fit(holes)
    told = []
    model = classifier(dense(), maxRounds=1, handleInvalid="skip", callbacks=[told.append]).fit(holes)
    started = next(event for event in told if event["event"] == "run_started")
    whole = holes.filter("features is not null and not held").count()
    assert started["training_rows"] == whole < digits.filter("not held").count()
    kept = model.setHandleInvalid("keep").transform(holes)
    assert kept.filter("prediction is null").count() == holes.filter("features is null").count()
    # No numbers are missing ones too: of vectors, arrays, and weights.
    nan = digits.withColumn("features", vector_to_array("features")).withColumn("weight", F.lit(1.0))
    nan = nan.withColumn(
        "features", F.when(F.col("label") != 3, F.col("features")).otherwise(F.array(F.lit(np.nan)))
    )
    nan = nan.withColumn("weight", F.when(F.col("label") == 4, np.nan).otherwise(F.col("weight")))
    classifier(dense(), maxRounds=1, handleInvalid="skip", weightCol="weight", callbacks=[told.append]).fit(nan)
    started = [event for event in told if event["event"] == "run_started"]
    assert started[1]["training_rows"] == digits.filter("not held and label not in (3, 4)").count()
    with pytest.raises(ConfigError, match="handleInvalid is 'keep'; a fit takes 'error' or 'skip'"):
        classifier(dense(), handleInvalid="keep").fit(digits)


def test_a_fault_in_the_net_ends_the_fit_with_its_line(digits, tmp_path):
    class Faulty(dense()):
        steps = 0

        def forward(self, features):
            self.steps += 1
            if self.steps > 25:
                raise ValueError(f"a fault in step {self.steps}")
            return super().forward(features)

    told = []
    with pytest.raises(WorkerError) as found:
        classifier(Faulty, runDir=tmp_path / "run", callbacks=[told.append]).fit(digits)
    place = f"{__file__}, line {Faulty.forward.__code__.co_firstlineno + 3}, in forward: raise ValueError"
    assert place in str(found.value)
    assert "a fault in step" in str(found.value)
    # After some rounds at each attempt, in which the others got on; on a busy machine others fall silent too.
    lost = [event for event in told if event["event"] == "worker_lost" and event["reason"].startswith("error")]
    assert len(lost) <= 1
    assert told[-1]["event"] == "run_failed"
    assert all("in forward" in event["trace"] for event in (*lost, told[-1]))


def test_a_net_that_does_not_fit_the_rows_fails_before_a_worker_starts(digits):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(65, 10)

        def forward(self, features):
            return self.layer(features)

    told = []
    with pytest.raises(NetError, match=r"features \(2, 64\).*do not go through it.*65"):
        classifier(Wide, callbacks=[told.append]).fit(digits)
    assert "worker_joined" not in {event["event"] for event in told}


def test_a_column_that_is_not_there_is_told_by_its_param(digits):
    with pytest.raises(DataError, match=r"column pixels is not in the data.*data.image is Param featuresCol"):
        classifier(dense(), featuresCol="pixels").fit(digits)


def test_a_stream_is_refused(spark):
    stream = spark.readStream.format("rate").load()
    with pytest.raises(ConfigError, match="the DataFrame is a stream"):
        classifier(dense()).fit(stream)


def test_a_run_goes_on_where_it_was_interrupted(digits, tmp_path):
    net, run_dir = dense(), tmp_path / "run"
    options = {"runDir": str(run_dir), "maxRounds": 40, "checkpointEvery": 1}

    def stop(event):
        if event["event"] == "round" and event["round"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classifier(net, callbacks=[stop], **options).fit(digits)
    told = []
    model = classifier(net, callbacks=[told.append], **options).fit(digits)
    resumed = next(event for event in told if event["event"] == "run_resumed")
    assert resumed["round"] >= 4
    assert model.history["round"].tolist() == list(range(1, 41))
    # And a finished one is read, not trained.
    told.clear()
    again = classifier(net, callbacks=[told.append], **options).fit(digits)
    assert not told
    for name, tensor in again.module().state_dict().items():
        assert torch.equal(tensor, model.module().state_dict()[name])


def test_a_run_of_others_is_refused(spark, digits, tmp_path):
    net, options = dense(), {"runDir": str(tmp_path / "run"), "maxRounds": 1}
    classifier(net, **options).fit(digits)
    with pytest.raises(RunDirError, match=r"holds another run: solver.batch_size is 64 there and 32 here"):
        classifier(net, batchSize=32, **options).fit(digits)
    with pytest.raises(RunDirError, match=r"holds a run on other rows: training rows is 1437 there and"):
        classifier(net, **options).fit(digits.filter("label < 9"))
    with pytest.raises(RunDirError, match=r"holds another run: net.name is"):
        classifier(dense(width=33), **options).fit(digits)
    # The same rows by another plan, in another order, as in another application.
    other = spark.createDataFrame(sorted(digits.collect(), key=str), digits.schema)
    assert classifier(net, **options).fit(other).hasSummary
    # Where and how fast may change.
    assert classifier(net, numWorkers=1, **options).fit(digits).hasSummary


def test_a_fit_that_failed_before_it_began_is_begun_anew(digits, tmp_path):
    options = {"runDir": str(tmp_path / "run"), "maxRounds": 1}
    with pytest.raises(DataError):
        classifier(dense(), featuresCol="pixels", **options).fit(digits)
    assert classifier(dense(), **options).fit(digits).hasSummary


def test_without_a_run_directory_nothing_is_left(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    classifier(dense(), maxRounds=1).fit(digits)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_ends_the_fit_and_keeps_the_session(spark, digits):
    def press(event):
        if event["event"] == "round":
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        classifier(dense(), maxRounds=100_000, callbacks=[press]).fit(digits)
    assert signal.getsignal(signal.SIGINT) is before
    assert spark.range(10).count() == 10


def test_a_callback_may_be_a_function_or_what_shows_events(digits):
    class Shows:
        def __init__(self):
            self.kinds = []

        def on_event(self, event):
            self.kinds.append(event["event"])

    shows = Shows()
    classifier(dense(), maxRounds=1, callbacks=[shows]).fit(digits)
    assert shows.kinds[0] == "note"
    assert shows.kinds[-1] == "run_finished"
    with pytest.raises(ConfigError, match="callbacks has 3"):
        classifier(dense(), maxRounds=1, callbacks=[3]).fit(digits)


def test_weights_are_in_no_task(digits, monkeypatch):
    class Sixty(nn.Module):
        """60 M parameters."""

        def __init__(self):
            super().__init__()
            self.wide = nn.Linear(64, 7_500)
            self.deep = nn.Linear(7_500, 7_900)
            self.head = nn.Linear(7_900, 10)

        def forward(self, features):
            return self.head(self.deep(self.wide(features)))

    net, sizes = Sixty(), []
    assert sum(parameter.numel() for parameter in net.parameters()) > 59e6

    def weigh(spark, task, **_):
        sizes.append(len(cloudpickle.dumps(task(0, 1))))
        raise ClusterError("seen")

    monkeypatch.setattr(running, "WorkerJobs", weigh)
    with pytest.raises(ClusterError, match="seen"):
        classifier(net).fit(digits)
    assert sizes[0] < 1_000_000


def test_ten_fits_leave_nothing_open(digits):
    def facts():
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    net = dense()
    classifier(net, maxRounds=1).fit(digits)
    before = facts()
    for _ in range(10):
        classifier(net, maxRounds=1).fit(digits)
    after = facts()
    assert after[0] <= before[0] + 3
    assert after[1] <= before[1] + 2


def test_one_call_for_scripts(digits):
    done = train(
        digits.filter("not held").drop("held"),
        dense(),
        validation=digits.filter("held").drop("held"),
        maxEpochs=3,
        learningRate=0.05,
        verbose=False,
    )
    assert done.result["accuracy"] > 0.6
    assert done.history["validation_accuracy"].iloc[-1] == done.result["accuracy"]
    assert isinstance(done.model.module(), nn.Module)


def test_progress_is_printed_unless_it_is_not_wanted(digits, capsys):
    classifier(dense(), maxRounds=1, verbose=True).fit(digits)
    assert "round 1/1" in capsys.readouterr().out
    classifier(dense(), maxRounds=1).fit(digits)
    assert capsys.readouterr().out == ""


def test_a_fit_has_the_files_of_a_run(digits, tmp_path):
    classifier(dense(), maxRounds=1, runDir=str(tmp_path / "run")).fit(digits)
    names = {path.name for path in Path(tmp_path / "run").iterdir()}
    assert {"config.toml", "events.jsonl", "model", "result.json", "store", "checkpoints"} <= names
    described = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert "Dense#" in described["net"]["name"]
