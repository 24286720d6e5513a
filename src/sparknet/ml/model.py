"""Models: what a fit has made, as a transformer."""

from collections.abc import Sequence
from typing import Any

from pyspark.ml import Model as SparkModel
from pyspark.ml.util import MLReadable, MLWritable, MLWriter
from pyspark.sql import DataFrame
from torch import nn

from sparknet.errors import ConfigError
from sparknet.ml.params import ColumnParams, OutputParams, ProbabilityParams
from sparknet.ml.persistence import ModelReader, ModelWriter
from sparknet.ml.summary import TrainingSummary
from sparknet.spark.inference import InferenceSettings, Wanted, infer
from sparknet.training.objectives.given_code import Code
from sparknet.training.run_files.saved_model import Model

__all__ = ["SparkNetClassificationModel", "SparkNetModel", "SparkNetRegressionModel"]


class _Trained(ColumnParams, OutputParams, SparkModel, MLWritable, MLReadable):  # pyright: ignore[reportMissingTypeArgument]
    """What all three do.

    Args:
        model: net, preprocessing and what was learned of the columns.
        summary: how it was trained; None of one that was read from disk.
        code: what a program gave for the names of net and loss.
    """

    def __init__(
        self, model: Model | None = None, summary: TrainingSummary | None = None, *, code: Code | None = None
    ) -> None:
        super().__init__()
        self._trained = model
        self._summary = summary
        self._code = code or {}

    @property
    def _saved(self) -> Model:
        if self._trained is None:
            raise ConfigError(
                f"this {type(self).__name__} was made by hand and has no net; fit an estimator, or load a model"
            )
        return self._trained

    def module(self) -> nn.Module:
        """The trained net, a plain `torch.nn.Module` on the CPU."""
        return self._saved.module

    @property
    def hasSummary(self) -> bool:
        """Whether it was trained here, and not read from disk."""
        return self._summary is not None

    @property
    def summary(self) -> TrainingSummary:
        """How it was trained.

        Raises:
            RuntimeError: it was read from disk.
        """
        if self._summary is None:
            raise RuntimeError(f"No training summary available for this {type(self).__name__}")
        return self._summary

    @property
    def history(self) -> Any:
        """A row for each round of the training, `summary.history`: a pandas DataFrame."""
        return self.summary.history

    def write(self) -> MLWriter:
        """Writes Params, weights and description: JSON and safetensors."""
        return ModelWriter(self, self._saved)

    @classmethod
    def read(cls) -> ModelReader:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Reads what `write` wrote; `read().given(net=...)` where a notebook's own code is part of it."""
        return ModelReader(cls)

    def featurize(
        self, dataset: DataFrame, blobs: Sequence[str], outputCols: Sequence[str] | None = None
    ) -> DataFrame:
        """Add columns of vectors: what the net computes on its way.

        Args:
            dataset: rows as the model predicts for.
            blobs: blobs of a Caffe net, or submodules by their dotted names, whose outputs are taken.
            outputCols: what the columns are called; not given: as the blobs, dots as underscores.

        Raises:
            NetError: there is no such blob; the message has the nearest.
        """
        blobs = [blobs] if isinstance(blobs, str) else list(blobs)
        if twice := sorted({blob for blob in blobs if blobs.count(blob) > 1}):
            raise ConfigError(f"blobs has {', '.join(twice)} twice; each blob makes one column: name each once")
        names = list(outputCols) if outputCols is not None else [blob.replace(".", "_") for blob in blobs]
        if len(names) != len(blobs):
            raise ConfigError(
                f"outputCols has {len(names)} names and blobs {len(blobs)}; each blob makes one: give as many"
            )
        wanted = Wanted(blobs=dict(zip(blobs, names, strict=True)))
        return infer(dataset, self._saved, wanted, settings=self._settings())

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return infer(dataset, self._saved, self._wanted(), settings=self._settings())

    def _input_columns(self) -> tuple[str, ...]:
        """What the inputs are called in the data that it is given."""
        description = self._saved.description
        trained = tuple(column.name for column in description.rows.inputs)
        many, one = (self.getOrDefault(n) if self.isSet(n) else None for n in ("inputCols", "featuresCol"))
        said: tuple[str, ...] = tuple(many or ()) or ((one,) if one else trained)
        param = f"{'inputCols' if many else 'featuresCol'} is {many or one!r}"
        if len(said) != len(trained):
            raise ConfigError(
                f"{param}, and the model was trained on {', '.join(trained)}; each stands for one of these: name "
                "as many columns, in this order"
            )
        table = description.table
        if said != trained and table is not None and table.features:
            pieces = ", ".join(feature.name for feature in table.features)
            raise ConfigError(
                f"{param}, and the model puts its input together from the columns {pieces}: leave the "
                "Param out, and rename those of the DataFrame (withColumnRenamed)"
            )
        return said

    def _wanted(self) -> Wanted:
        return Wanted(prediction=self.getOrDefault("predictionCol"))

    def _settings(self) -> InferenceSettings:
        return InferenceSettings(
            batch_size=self.getOrDefault("batchSize"),
            columns=self._input_columns(),
            handle_invalid=self.getOrDefault("handleInvalid"),
            device=self.getOrDefault("device"),
            code=self._code,
        )


class _WithProbabilities(ProbabilityParams, _Trained):
    def _wanted(self) -> Wanted:
        return Wanted(
            prediction=self.getOrDefault("predictionCol"),
            probability=self.getOrDefault("probabilityCol"),
            raw=self.getOrDefault("rawPredictionCol"),
            predicted_label=self.getOrDefault("predictedLabelCol"),
        )

    @property
    def numClasses(self) -> int:
        """How many classes it tells apart."""
        return self._saved.description.rows.classes or 0

    @property
    def labels(self) -> list[str]:
        """Names of the classes in the order of their numbers; of labels that were whole numbers these, as texts."""
        label = self._saved.description.rows.targets[0].name
        table = self._saved.description.table
        category = table.categories.get(label) if table else None
        names = category.names if category else ()
        return list(names or map(str, range(self.numClasses)))


class SparkNetClassificationModel(_WithProbabilities):
    """Tells classes apart."""


class SparkNetRegressionModel(_Trained):
    """Finds numbers."""


class SparkNetModel(_WithProbabilities):
    """What a `SparkNetEstimator` has made: it predicts classes or numbers, whichever it was trained on."""

    def _wanted(self) -> Wanted:
        wanted = super()._wanted()
        raw = wanted.raw if self.isSet("rawPredictionCol") else ""
        # Of several targets nobody knows which output is the prediction.
        if len(self._saved.description.rows.targets) > 1:
            return Wanted(raw=wanted.raw)
        if self._saved.objective.answer().kind == "numbers":
            return Wanted(prediction=wanted.prediction, raw=raw)
        return wanted
