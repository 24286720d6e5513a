"""Estimators and models written and read, alone and in pipelines; cross-validation."""

import json

import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.tuning import CrossValidator, CrossValidatorModel, ParamGridBuilder, TrainValidationSplit
from sklearn.datasets import load_digits
from torch import nn

from digits import open_test_session
from sparknet.errors import CheckpointError, ConfigError, NetError
from sparknet.ml import DiLoCo, SparkNetClassificationModel, SparkNetClassifier
from sparknet.training.run_files.saved_model import load_model

pytestmark = pytest.mark.spark
NAMES = [f"p{at}" for at in range(64)]


@pytest.fixture(scope="module")
def spark():
    session = open_test_session("local[2,4]")
    yield session
    session.stop()


@pytest.fixture(scope="module")
def table(spark):
    """p0 .. p63 and label: 600 rows."""
    images, labels = load_digits(return_X_y=True)
    rows = [(*(image / 16).tolist(), int(label)) for image, label in zip(images[:600], labels, strict=False)]
    frame = spark.createDataFrame(rows, [*NAMES, "label"]).repartition(2).cache()
    frame.count()
    return frame


@pytest.fixture(scope="module")
def rows(table):
    return VectorAssembler(inputCols=NAMES, outputCol="features").transform(table)


def linear():
    class Linear(nn.Module):
        def __init__(self, classes=10):
            super().__init__()
            self.layer = nn.Linear(64, classes)

        def forward(self, features):
            return self.layer(features)

    return Linear


def classifier(net, **options):
    return SparkNetClassifier(net=net, **{"maxRounds": 10, "learningRate": 0.1, "verbose": False, **options})


def same(model, other):
    mine, theirs = (one.module().state_dict() for one in (model, other))
    return all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_a_model_is_written_as_safetensors_and_json(rows, tmp_path):
    model = classifier(linear()).fit(rows)
    path = str(tmp_path / "model")
    model.save(path)
    files = {file.name for file in (tmp_path / "model" / "model").iterdir()}
    assert files == {"weights.safetensors", "preprocess.safetensors", "model.json"}
    metadata = next((tmp_path / "model" / "metadata").glob("part-*")).read_text()
    assert json.loads(metadata)["class"] == "sparknet.ml.model.SparkNetClassificationModel"
    with pytest.raises(Exception, match="already exists"):
        model.save(path)
    model.write().overwrite().save(path)


def test_a_model_whose_net_is_given_again_is_the_same(rows, tmp_path):
    net = linear()
    model = classifier(net, predictionCol="said").fit(rows)
    model.save(str(tmp_path / "model"))
    again = SparkNetClassificationModel.read().given(net=net).load(str(tmp_path / "model"))
    assert same(model, again)
    assert (again.uid, again.getPredictionCol(), again.labels) == (model.uid, "said", model.labels)
    assert not again.hasSummary
    with pytest.raises(RuntimeError, match="No training summary available"):
        again.summary.history  # noqa: B018 - reading it is what fails
    with pytest.raises(NetError, match="Linear"):
        SparkNetClassificationModel.load(str(tmp_path / "model"))


def test_a_module_that_was_given_is_given_again(rows, tmp_path):
    net = linear()()
    model = classifier(net).fit(rows)
    model.save(str(tmp_path / "model"))
    again = SparkNetClassificationModel.read().given(net=net).load(str(tmp_path / "model"))
    assert same(model, again)


def test_an_importable_net_needs_nothing(rows, tmp_path):
    model = classifier("adult").fit(rows)
    model.save(str(tmp_path / "model"))
    assert same(model, SparkNetClassificationModel.load(str(tmp_path / "model")))
    # Nor does the folder need Spark.
    assert load_model(tmp_path / "model" / "model").description.net.name == "adult"


def test_a_damaged_model_is_told_of(rows, tmp_path):
    classifier("adult", maxRounds=1).fit(rows).save(str(tmp_path / "model"))
    weights = tmp_path / "model" / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        SparkNetClassificationModel.load(str(tmp_path / "model"))


def test_an_estimator_is_written_and_read(spark, tmp_path):
    estimator = SparkNetClassifier(net="lenet", numWorkers=(1, 2), sync=DiLoCo(lr=0.5), callbacks=[print])
    estimator.save(str(tmp_path / "estimator"))
    again = SparkNetClassifier.load(str(tmp_path / "estimator"))
    assert again.uid == estimator.uid
    assert (again.getNet(), list(again.getNumWorkers()), again.getSync()) == ("lenet", [1, 2], DiLoCo(lr=0.5))
    assert not again.isDefined("callbacks")


def test_an_optimizer_is_written_by_its_name_and_code_is_refused(spark, tmp_path):
    SparkNetClassifier(net="lenet", optimizer=torch.optim.AdamW).save(str(tmp_path / "estimator"))
    assert SparkNetClassifier.load(str(tmp_path / "estimator")).getOptimizer() == "AdamW"
    with pytest.raises(ConfigError, match=r"net is .*, which a saved estimator cannot hold; give it by name"):
        SparkNetClassifier(net=linear()).save(str(tmp_path / "other"))


def test_a_pipeline_is_fitted_written_and_read(table, tmp_path):
    assembler = VectorAssembler(inputCols=NAMES, outputCol="features")
    pipeline = Pipeline(stages=[assembler, classifier("adult")])
    model = pipeline.fit(table)
    before = model.transform(table).select("prediction").collect()
    model.save(str(tmp_path / "pipeline"))
    again = PipelineModel.load(str(tmp_path / "pipeline"))
    assert again.transform(table).select("prediction").collect() == before
    pipeline.save(str(tmp_path / "unfitted"))
    assert Pipeline.load(str(tmp_path / "unfitted")).getStages()[1].getNet() == "adult"


@pytest.mark.parametrize("parallelism", [1, 2])
def test_cross_validation_finds_the_better_rate(rows, tmp_path, parallelism):
    estimator = classifier("adult", maxRounds=5)
    grid = ParamGridBuilder().addGrid(estimator.learningRate, [1e-6, 0.1]).build()
    validator = CrossValidator(
        estimator=estimator,
        estimatorParamMaps=grid,
        evaluator=MulticlassClassificationEvaluator(metricName="accuracy"),
        numFolds=2,
        parallelism=parallelism,
    )
    model = validator.fit(rows)
    assert model.avgMetrics[1] > model.avgMetrics[0] + 0.2
    assert isinstance(model.bestModel, SparkNetClassificationModel)
    if parallelism == 1:
        model.save(str(tmp_path / "validated"))
        assert same(model.bestModel, CrossValidatorModel.load(str(tmp_path / "validated")).bestModel)


def test_a_train_validation_split(rows):
    estimator = classifier("adult", maxRounds=3)
    model = TrainValidationSplit(
        estimator=estimator,
        estimatorParamMaps=ParamGridBuilder().addGrid(estimator.localSteps, [1, 10]).build(),
        evaluator=MulticlassClassificationEvaluator(metricName="accuracy"),
    ).fit(rows)
    assert model.validationMetrics[1] > model.validationMetrics[0]
