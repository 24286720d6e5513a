"""Boosted trees."""

from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.sql import DataFrame
from xgboost.spark import SparkXGBClassifier


def run(train: DataFrame, test: DataFrame, *, epochs: int, workers: int) -> float:
    estimator = SparkXGBClassifier(num_workers=workers, n_estimators=epochs * 5, features_col="features")
    predicted = estimator.fit(train).transform(test)
    return MulticlassClassificationEvaluator(metricName="accuracy").evaluate(predicted)
