"""A trained model over the rows of a DataFrame: predictions, scores and features as further columns."""

from sparknet.spark.inference.infer import infer
from sparknet.spark.inference.outputs import check_wanted
from sparknet.spark.inference.wanted import InferenceSettings, Wanted

__all__ = ["InferenceSettings", "Wanted", "check_wanted", "infer"]
