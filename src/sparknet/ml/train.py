"""One call for scripts: rows in, a trained model out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyspark.sql import DataFrame

from sparknet.ml.estimator import SparkNetEstimator
from sparknet.ml.model import SparkNetModel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TrainResult", "train"]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class TrainResult:
    """What a call of `train` has made."""

    model: SparkNetModel
    """Predicts, is saved, gives the module."""
    history: "pd.DataFrame"
    """A row for each round, as `TrainingSummary.history`."""
    result: Mapping[str, Any]
    """Measures of the last validation, seconds, workers, failures."""


def train(df: DataFrame, net: Any, *, validation: DataFrame | None = None, **options: Any) -> TrainResult:
    """Train a network on the rows of a DataFrame.

    Args:
        df: the training rows.
        net: what `SparkNetEstimator` takes for its Param net.
        validation: rows to validate on, of the same columns; `validationIndicatorCol` marks them in `df` instead.
        options: the other Params of `SparkNetEstimator`, by their names.

    Raises:
        SparkNetError: an option or column is at fault, or the run failed.
        KeyboardInterrupt: it was interrupted; its job has ended, and the session goes on.
    """
    model = SparkNetEstimator(net=net, **options).fit_frames(df, validation)
    return TrainResult(model=model, history=model.summary.history, result=model.summary.result)
