"""A user's program over `sparknet.ml`, check by check, on whatever session its environment leads to.

    python ml_program.py DIRECTORY [CHECK ...]      # all checks, if none is named

Each check prints a line of JSON: its name, its seconds, and what failed, if anything did. The session is that of
SPARK_REMOTE (Connect), else of SPARK_MASTER_URL.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.datasets import load_digits
from torch import nn

from sparknet.errors import DataError
from sparknet.ml import SparkNetClassificationModel, SparkNetClassifier

NAMES = [f"p{at}" for at in range(64)]


class Net(nn.Module):
    """Defined in the program itself, as in a notebook."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))

    def forward(self, features):
        return self.layers(features)


def open_session() -> SparkSession:
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if remote := os.environ.get("SPARK_REMOTE"):
        return SparkSession.builder.remote(remote).getOrCreate()
    builder: Any = SparkSession.builder.master(os.environ["SPARK_MASTER_URL"])
    for setting, value in {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "OFF",
        "spark.python.daemon.module": "sparknet.spark.running.preimport",
    }.items():
        builder = builder.config(setting, value)
    return builder.getOrCreate()


def digits(spark: SparkSession) -> DataFrame:
    images, labels = load_digits(return_X_y=True)
    rows = [([*map(float, image / 16)], int(label)) for image, label in zip(images, labels, strict=True)]
    return spark.createDataFrame(rows, "features array<float>, label int")


def classifier(**options: Any) -> SparkNetClassifier:
    return SparkNetClassifier(
        **{"net": Net, "numWorkers": 2, "learningRate": 0.05, "maxEpochs": 6, "verbose": False, **options}
    )


def accuracy_of(model: SparkNetClassificationModel, frame: DataFrame) -> float:
    return MulticlassClassificationEvaluator(metricName="accuracy").evaluate(model.transform(frame))


def check_fit_and_transform(spark: SparkSession, directory: Path) -> None:
    frame = digits(spark)
    model = classifier().fit(frame)
    assert accuracy_of(model, frame) > 0.8
    assert model.transform(frame).columns[:2] == ["features", "label"]
    assert model.history["loss"].iloc[-1] < model.history["loss"].iloc[0]


def check_save_and_load(spark: SparkSession, directory: Path) -> None:
    frame = digits(spark)
    model = classifier(maxRounds=3, maxEpochs=None).fit(frame)
    model.save(str(directory / "model"))
    again = SparkNetClassificationModel.load(str(directory / "model"))
    mine, theirs = (one.transform(frame).select("prediction").collect() for one in (model, again))
    assert mine == theirs


def check_pipeline(spark: SparkSession, directory: Path) -> None:
    wide = digits(spark).select(*(F.col("features")[at].alias(name) for at, name in enumerate(NAMES)), "label")
    stages = [VectorAssembler(inputCols=NAMES, outputCol="features"), classifier()]
    model = Pipeline(stages=stages).fit(wide)
    model.save(str(directory / "pipeline"))
    assert accuracy_of(PipelineModel.load(str(directory / "pipeline")), wide) > 0.8


def check_cross_validation(spark: SparkSession, directory: Path) -> None:
    estimator = classifier(maxRounds=4, maxEpochs=None)
    found = CrossValidator(
        estimator=estimator,
        estimatorParamMaps=ParamGridBuilder().addGrid(estimator.learningRate, [1e-6, 0.05]).build(),
        evaluator=MulticlassClassificationEvaluator(metricName="accuracy"),
        numFolds=2,
        parallelism=2,
    ).fit(digits(spark).limit(600))
    assert found.avgMetrics[1] > found.avgMetrics[0]


def check_empty_and_skewed_partitions(spark: SparkSession, directory: Path) -> None:
    # Two of five partitions have rows, one of them nearly all.
    frame = digits(spark).repartitionByRange(5, F.when(F.rand(0) < 0.97, 0).otherwise(1))
    model = classifier().fit(frame)
    assert accuracy_of(model, frame) > 0.8


def check_nulls(spark: SparkSession, directory: Path) -> None:
    frame = digits(spark).withColumn("features", F.when(F.col("label") != 3, F.col("features")))
    with pytest.raises(DataError, match="features"):
        classifier().fit(frame)
    model = classifier(handleInvalid="skip").fit(frame)
    rows = model.setHandleInvalid("keep").transform(frame)
    assert rows.filter("prediction is null").count() == rows.filter("label = 3").count()


def check_words(spark: SparkSession, directory: Path) -> None:
    frame = digits(spark).withColumn("label", F.concat(F.lit("digit "), F.col("label").cast("string")))
    model = classifier(predictedLabelCol="said").fit(frame)
    right = model.transform(frame).filter("said = label").count()
    assert right > 0.8 * frame.count()


def check_resume(spark: SparkSession, directory: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 5:
            raise KeyboardInterrupt

    options = {"runDir": str(directory / "run"), "maxRounds": 12, "maxEpochs": None, "checkpointEvery": 1}
    with pytest.raises(KeyboardInterrupt):
        classifier(callbacks=[stop], **options).fit(digits(spark))
    told: list[dict[str, Any]] = []
    model = classifier(callbacks=[told.append], **options).fit(digits(spark))
    assert any(event["event"] == "run_resumed" and event["round"] >= 4 for event in told)
    assert model.history["round"].tolist() == list(range(1, 13))


def check_killed_worker(spark: SparkSession, directory: Path) -> None:
    """Where the worker's process can be reached, which is on this machine."""
    told = Told(signal.SIGKILL)
    model = classifier(maxRounds=400, maxEpochs=None, callbacks=[told], checkpointEvery=50).fit(digits(spark))
    assert told.lost
    assert model.summary.result["failures"] >= 1
    assert model.summary.result["rounds"] == 400


def check_hung_worker(spark: SparkSession, directory: Path) -> None:
    """A process that is stopped ends by nobody's knowledge but ours; another one takes its slot."""
    told = Told(signal.SIGSTOP, until_replaced=True)
    with pytest.raises(KeyboardInterrupt):
        classifier(maxRounds=100_000, maxEpochs=None, callbacks=[told], checkpointEvery=10_000).fit(digits(spark))
    assert "silent" in told.lost[0]["reason"]
    assert spark.range(5).count() == 5, "the session is still usable"


class Told:
    """Hears of a run, and hits its worker 1 after round 3."""

    def __init__(self, how: signal.Signals, *, until_replaced: bool = False) -> None:
        self.lost: list[dict[str, Any]] = []
        self._how, self._until_replaced = how, until_replaced
        self._pids: list[int] = []
        self._began = time.monotonic()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "worker_joined" and event["slot"] == 1:
            self._pids.append(event["pid"])
        if event["event"] == "worker_lost" and event["slot"] == 1:
            self.lost.append(event)
        if event["event"] != "round":
            return
        if event["round"] == 3:
            os.kill(self._pids[0], self._how)
        if self._until_replaced:
            assert time.monotonic() - self._began < 180, "the hung worker was not replaced"
            if len(set(self._pids)) > 1:
                raise KeyboardInterrupt


def check_ten_fits(spark: SparkSession, directory: Path) -> None:
    frame = digits(spark).cache()

    def fit() -> None:
        classifier(maxRounds=1, maxEpochs=None).fit(frame)

    def facts() -> np.ndarray:
        temporary = len(list(Path(os.environ.get("TMPDIR", "/tmp")).glob("sparknet-*")))
        return np.array([len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), temporary])

    fit()
    before = facts()
    for _ in range(10):
        fit()
    more = facts() - before
    # Spark's own connections come and go.
    assert (more <= [4, 3, 0]).all(), f"open files, threads, temporary directories: {more.tolist()} more"


CHECKS: dict[str, Callable[[SparkSession, Path], None]] = {
    name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")
}


def main() -> None:
    directory, names = Path(sys.argv[1]), sys.argv[2:] or list(CHECKS)
    spark = open_session()
    for name in names:
        own = directory / name
        own.mkdir()
        began, failure = time.perf_counter(), ""
        try:
            CHECKS[name](spark, own)
        except BaseException:
            failure = traceback.format_exc()
        print(json.dumps({"check": name, "seconds": time.perf_counter() - began, "failure": failure}), flush=True)
    spark.stop()


if __name__ == "__main__":
    main()
