"""Params as pyspark.ml has them: constructor, setters, copies, refusals."""

import inspect

import pytest
from pyspark.ml.param import Param
from pyspark.ml.tuning import ParamGridBuilder

from sparknet.errors import ConfigError
from sparknet.ml import SparkNetClassifier, SparkNetEstimator, SparkNetRegressor

KINDS = [SparkNetClassifier, SparkNetRegressor, SparkNetEstimator]


@pytest.mark.parametrize("kind", KINDS)
def test_each_param_has_words_a_setter_and_a_getter(kind):
    estimator = kind()
    for param in estimator.params:
        assert isinstance(param, Param)
        assert len(param.doc) > 10
        verb = f"{param.name[0].upper()}{param.name[1:]}"
        assert callable(getattr(estimator, f"set{verb}"))
        assert callable(getattr(estimator, f"get{verb}"))
    assert "numWorkers: replicas, a Spark task each" in estimator.explainParams()


def test_help_shows_every_keyword():
    shown = inspect.signature(SparkNetClassifier)
    assert {"net", "numWorkers", "probabilityCol", "runDir"} <= shown.parameters.keys()
    assert shown.parameters["batchSize"].default == 64


def test_what_is_set_is_read_and_the_rest_has_defaults():
    estimator = SparkNetClassifier(net="lenet", numWorkers=(1, 4))
    assert estimator.getNet() == "lenet"
    assert estimator.getNumWorkers() == (1, 4)
    assert estimator.getFeaturesCol() == "features"
    assert not estimator.isSet("featuresCol")
    assert estimator.setFeaturesCol("image") is estimator
    assert estimator.getFeaturesCol() == "image"


def test_a_copy_is_another_one():
    estimator = SparkNetClassifier(net="lenet", learningRate=0.1)
    other = estimator.copy({estimator.learningRate: 0.2})
    assert (estimator.getLearningRate(), other.getLearningRate()) == (0.1, 0.2)
    assert other.uid == estimator.uid
    assert other.getNet() == "lenet"


def test_none_is_what_was_not_said():
    assert not SparkNetClassifier(runDir=None).isDefined("runDir")
    assert not SparkNetClassifier(runDir="x").setRunDir(None).isDefined("runDir")


@pytest.mark.parametrize(
    ("name", "instead"),
    [("maxIter", "maxEpochs"), ("stepSize", "learningRate"), ("layers", "net"), ("blockSize", "batchSize")],
)
def test_params_of_others_are_refused_with_what_does_it_here(name, instead):
    with pytest.raises(ConfigError, match=rf"SparkNetClassifier has no Param {name}; use {instead}"):
        SparkNetClassifier(**{name: 1})


def test_an_unknown_param_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"no Param colour; there are batchSize, "):
        SparkNetRegressor(colour=1)
    # A regressor has no probabilities.
    with pytest.raises(ConfigError, match="no Param probabilityCol"):
        SparkNetRegressor(probabilityCol="p")


def test_a_value_of_another_type_is_refused():
    with pytest.raises(TypeError, match="batchSize"):
        SparkNetClassifier(batchSize="many")


def test_a_grid_is_built_over_them():
    estimator = SparkNetClassifier(net="lenet")
    grid = (
        ParamGridBuilder()
        .addGrid(estimator.learningRate, [0.1, 0.01])
        .addGrid(estimator.localSteps, [1, 5])
        .build()
    )
    assert len(grid) == 4
