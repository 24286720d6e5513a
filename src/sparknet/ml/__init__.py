"""Spark ML: estimators that train any network on a DataFrame, and their models.

    from sparknet.ml import SparkNetClassifier

    model = SparkNetClassifier(net="lenet", numWorkers=4, featuresCol="image", labelCol="label").fit(df)
    model.transform(test_df).select("prediction", "probability")

They keep to pyspark.ml's conventions: Params, `copy`, pipelines, cross-validation, `write` and `load`.
"""

from sparknet.config import Measure
from sparknet.ml.estimator import SparkNetClassifier, SparkNetEstimator, SparkNetRegressor
from sparknet.ml.model import SparkNetClassificationModel, SparkNetModel, SparkNetRegressionModel
from sparknet.ml.settings import Average, DiLoCo
from sparknet.ml.summary import TrainingSummary
from sparknet.ml.train import TrainResult, train

__all__ = [
    "Average",
    "DiLoCo",
    "Measure",
    "SparkNetClassificationModel",
    "SparkNetClassifier",
    "SparkNetEstimator",
    "SparkNetModel",
    "SparkNetRegressionModel",
    "SparkNetRegressor",
    "TrainResult",
    "TrainingSummary",
    "train",
]
