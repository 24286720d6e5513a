"""Spark's own networks."""

from pyspark.ml.classification import MultilayerPerceptronClassifier
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.sql import DataFrame


def run(train: DataFrame, test: DataFrame, *, epochs: int, workers: int) -> float:
    features, classes = len(train.first().features), train.select("label").distinct().count()
    estimator = MultilayerPerceptronClassifier(layers=[features, 128, 64, classes], maxIter=epochs * 10, seed=0)
    predicted = estimator.fit(train).transform(test)
    return MulticlassClassificationEvaluator(metricName="accuracy").evaluate(predicted)
