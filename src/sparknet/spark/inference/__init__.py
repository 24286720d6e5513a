"""A trained model over the rows of a DataFrame: predictions, scores and features as further columns."""

from sparknet.spark.inference.infer import infer
from sparknet.spark.inference.wanted import InferenceSettings, Wanted

__all__ = ["InferenceSettings", "Wanted", "infer"]
