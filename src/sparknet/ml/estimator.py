"""Estimators: a network trained on a DataFrame by replicas on its Spark cluster."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pyspark.ml import Estimator
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.util import MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, DoubleType, FloatType

from sparknet.errors import ConfigError, DataError, NetError, RunDirError
from sparknet.ml.fitting import fit
from sparknet.ml.model import SparkNetClassificationModel, SparkNetModel, SparkNetRegressionModel
from sparknet.ml.params import OutputParams, ProbabilityParams, TrainingParams
from sparknet.ml.persistence import EstimatorReader, EstimatorWriter
from sparknet.ml.settings import fit_of, in_params
from sparknet.spark.preparing.prepare import Frames
from sparknet.spark.running.run import Observer

__all__ = ["SparkNetClassifier", "SparkNetEstimator", "SparkNetRegressor"]


class _Training(TrainingParams, Estimator, MLWritable, MLReadable):  # pyright: ignore[reportMissingTypeArgument]
    """What all three do."""

    _label_kind: ClassVar[Literal["category", "number"] | None] = None
    """What labels are, where the estimator knows."""
    _model: ClassVar[type[Any]] = SparkNetModel

    def _fit(self, dataset: DataFrame) -> Any:
        return self.fit_frames(dataset)

    def fit_frames(self, dataset: DataFrame, validation: DataFrame | None = None) -> Any:
        """Train on one DataFrame and validate on another.

        Raises:
            SparkNetError: a Param or column is at fault, `runDir` holds another run, or the run failed.
            KeyboardInterrupt: it was interrupted; its job has ended, and the session goes on.
        """
        for frame in (dataset, validation):
            if frame is not None and frame.isStreaming:
                raise ConfigError(
                    "the DataFrame is a stream; a fit needs all rows: read them, or a part, as a batch"
                )
        run_dir = self.getOrDefault("runDir") if self.isDefined("runDir") else None
        observers = _observers(self.getOrDefault("callbacks") if self.isDefined("callbacks") else ())
        try:
            asked = fit_of(self, label_kind=self._label_kind, validation_frame=validation is not None)
            frames = Frames(
                train=self._valid(dataset), validation=None if validation is None else self._valid(validation)
            )
            fitted = fit(
                dataset.sparkSession,
                frames,
                asked,
                run_dir=run_dir or None,
                observers=observers,
                verbose=self.getOrDefault("verbose"),
            )
        except (ConfigError, DataError, NetError, RunDirError) as error:
            # Of keys of a configuration, which the reader may never have seen.
            if (told := in_params(str(error))) == str(error):
                raise
            raise type(error)(told) from error
        model = self._model(fitted.model, fitted.summary, code=asked.code)
        model._resetUid(self.uid)
        return self._copyValues(model)

    def _valid(self, dataset: DataFrame) -> DataFrame:
        """The rows without those that are left out."""
        policy = self.getOrDefault("handleInvalid")
        if policy not in ("error", "skip"):
            raise ConfigError(
                f"handleInvalid is {policy!r}; a fit takes 'error' or 'skip', since nothing can be learned from "
                "rows that are not there: set 'keep' on the model"
            )
        if policy == "error":
            return dataset
        for name in _columns_of(self):
            if name in dataset.columns:
                dataset = dataset.filter(~_is_missing(name, dataset.schema[name].dataType))
        return dataset

    def write(self) -> MLWriter:
        """Writes the Params; a net or loss that is no name cannot be written."""
        return EstimatorWriter(self)

    @classmethod
    def read(cls) -> MLReader[Any]:
        """Reads what `write` wrote."""
        return EstimatorReader(cls)


def _is_missing(name: str, kind: DataType) -> Column:
    """Whether a cell is null or, as pyspark.ml's `handleInvalid` has it, not a number."""
    cell = F.col(f"`{name.replace('`', '``')}`")
    match kind:
        case DoubleType() | FloatType():
            return cell.isNull() | F.isnan(cell)
        case ArrayType(elementType=DoubleType() | FloatType()):
            return cell.isNull() | F.coalesce(F.exists(cell, lambda one: one.isNull() | F.isnan(one)), F.lit(False))
        case VectorUDT():
            return cell.isNull() | F.exists(vector_to_array(cell), F.isnan)
        case _:
            return cell.isNull()


def _columns_of(params: TrainingParams) -> list[str]:
    names: list[str] = []
    for many, one in (("inputCols", "featuresCol"), ("targetCols", "labelCol")):
        names += params.getOrDefault(many) if params.isDefined(many) else [params.getOrDefault(one)]
    for one in ("weightCol", "validationIndicatorCol"):
        names += [params.getOrDefault(one)] if params.isDefined(one) else []
    return names


def _observers(callbacks: Any) -> list[Observer]:
    observers: list[Observer] = []
    for one in callbacks if isinstance(callbacks, list | tuple) else [callbacks]:
        told: Callable[[dict[str, object]], None] | None = getattr(one, "on_event", one)
        if not callable(told):
            raise ConfigError(f"callbacks has {one!r}; each must be a function that takes an event, a dict")
        observers.append(told)
    return observers


class SparkNetClassifier(ProbabilityParams, _Training):
    """Trains any network to tell classes apart.

    Labels are whole numbers, also with gaps or as 1.0, words or booleans; the model keeps which class is which.
    """

    _label_kind = "category"
    _model = SparkNetClassificationModel


class SparkNetRegressor(OutputParams, _Training):
    """Trains any network to find numbers."""

    _label_kind = "number"
    _model = SparkNetRegressionModel


class SparkNetEstimator(ProbabilityParams, _Training):
    """Trains any network: any inputs, any targets, any loss.

    Labels are classes if they are whole numbers, words or booleans, else numbers.
    """
