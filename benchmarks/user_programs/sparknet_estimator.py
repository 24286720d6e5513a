"""Replicas that average their weights."""

from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.sql import DataFrame
from torch import nn

from sparknet.ml import SparkNetClassifier


def net(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(input_shape[0], 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, classes)
    )


def run(train: DataFrame, test: DataFrame, *, epochs: int, workers: int) -> float:
    estimator = SparkNetClassifier(
        net=net, numWorkers=workers, learningRate=0.05, batchSize=32, maxEpochs=epochs, verbose=False
    )
    predicted = estimator.fit(train).transform(test)
    return MulticlassClassificationEvaluator(metricName="accuracy").evaluate(predicted)
