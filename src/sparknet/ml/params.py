"""The Params of estimators and models: each is declared once, with what it means.

Values are held to their rules when a fit begins, where the configuration that they come to is checked as a whole:
whether a number of workers or a name of an optimiser makes sense is no question of one Param.
"""

import inspect
from pathlib import Path
from typing import Any, Self

from pyspark.ml.param import Param, Params, TypeConverters

from sparknet.errors import ConfigError

__all__ = ["ColumnParams", "OutputParams", "ProbabilityParams", "TrainingParams", "WithAccessors"]

_ELSEWHERE = {
    "maxIter": "maxEpochs, passes over the rows, or maxRounds",
    "stepSize": "learningRate",
    "blockSize": "batchSize",
    "solver": "optimizer",
    "layers": "net, a callable that builds them",
    "tol": "earlyStop",
    "regParam": "config={'solver.weight_decay': ...}",
    "elasticNetParam": "config={'solver.weight_decay': ...}, or a loss of yours",
    "aggregationDepth": "nothing: replicas exchange weights among themselves",
    "initialWeights": "net, a module with these weights, or config={'net.weights': ...}",
    "thresholds": "probabilityCol, to decide by yourself",
    "threshold": "probabilityCol, to decide by yourself",
    "family": "loss",
    "standardization": "config={'data.mean': 'channel', 'data.std': 'channel'}",
    "checkpointInterval": "checkpointEvery",
    "featuresCols": "inputCols",
    "num_workers": "numWorkers",
    "labelCols": "targetCols",
    "epochs": "maxEpochs",
    "verbosity": "verbose",
}
"""What others call it, in pyspark.ml or beside it, and what does it here."""


_DEFAULTS: dict[str, Any] = {
    "featuresCol": "features",
    "labelCol": "label",
    "predictionCol": "prediction",
    "probabilityCol": "probability",
    "rawPredictionCol": "rawPrediction",
    "predictedLabelCol": "",
    "handleInvalid": "error",
    "batchSize": 64,
    "device": "auto",
    "numWorkers": 2,
    "localSteps": 10,
    "seed": 0,
    "verbose": True,
}
"""Where nothing is said; of what is not here, the configuration's own defaults hold."""


def _anything(value: Any) -> Any:
    return value


def _text(value: Any) -> str:
    return str(value) if isinstance(value, Path) else TypeConverters.toString(value)


def _param(name: str, doc: str, converter: Any = _anything) -> Any:
    return Param(Params._dummy(), name, doc, typeConverter=converter)  # pyright: ignore[reportPrivateUsage]


class WithAccessors(Params):
    """Params with a keyword constructor, and `setX` and `getX` for each Param `x`."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._setDefault(**{name: value for name, value in _DEFAULTS.items() if self.hasParam(name)})
        self.setParams(**options)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        # In one place for all of them: sixty methods that say nothing beyond their names would hide those that do.
        names = [name for name in dir(cls) if isinstance(inspect.getattr_static(cls, name, None), Param)]
        for name in names:
            for verb, made in (("set", _setter(name)), ("get", _getter(name))):
                method = f"{verb}{name[0].upper()}{name[1:]}"
                if not hasattr(cls, method):
                    setattr(cls, method, made)
        # What `help` and notebooks show.
        keyword = inspect.Parameter.KEYWORD_ONLY
        shown = [inspect.Parameter(name, keyword, default=_DEFAULTS.get(name)) for name in names]
        cls.__signature__ = inspect.Signature(shown)

    def setParams(self, **options: Any) -> Self:
        """Set Params by their names.

        Raises:
            ConfigError: there is no such Param; the message names what does it here.
        """
        for name in options:
            if not self.hasParam(name):
                known = ", ".join(param.name for param in self.params)
                instead = f"use {_ELSEWHERE[name]}" if name in _ELSEWHERE else f"there are {known}"
                raise ConfigError(f"{type(self).__name__} has no Param {name}; {instead}")
        # As everywhere in pyspark.ml, None is what was not said.
        for name in (name for name, value in options.items() if value is None):
            self.clear(self.getParam(name))
        self._set(**{name: value for name, value in options.items() if value is not None})
        return self


def _setter(name: str) -> Any:
    def set_param(self: WithAccessors, value: Any) -> WithAccessors:
        return self.setParams(**{name: value})

    set_param.__doc__ = f"Sets the value of :py:attr:`{name}`."
    return set_param


def _getter(name: str) -> Any:
    def get_param(self: WithAccessors) -> Any:
        return self.getOrDefault(name)

    get_param.__doc__ = f"Gets the value of {name} or its default value."
    return get_param


class ColumnParams(WithAccessors):
    """Which columns are read, what becomes of nulls, and how."""

    featuresCol = _param(
        "featuresCol",
        "the column that is the net's input: arrays, vectors, numbers, images (binary or as Spark reads them)",
        TypeConverters.toString,
    )
    inputCols = _param(
        "inputCols",
        "in place of featuresCol: columns that the net is given, by the names of its forward's parameters where "
        "all fit, else in this order",
        TypeConverters.toListString,
    )
    labelCol = _param(
        "labelCol", "the column that is to be predicted: classes (numbers or words), or numbers", _text
    )
    handleInvalid = _param(
        "handleInvalid",
        "what becomes of rows with nulls, or with cells that cannot be read: 'error' ends the job and names one, "
        "'skip' leaves them out (a fit: those with nulls or NaN), 'keep' (predictions alone) has null predicted "
        "for them",
        TypeConverters.toString,
    )
    batchSize = _param("batchSize", "rows of a step of each worker, and of a forward pass", TypeConverters.toInt)
    device = _param("device", "'auto', 'cpu' or 'cuda': where each worker computes", TypeConverters.toString)


class OutputParams(WithAccessors):
    """The columns of predictions."""

    predictionCol = _param("predictionCol", "column of the predictions", TypeConverters.toString)


class ProbabilityParams(OutputParams):
    """The columns of a classifier's predictions."""

    probabilityCol = _param(
        "probabilityCol", "column of a probability for each class, a vector; empty: none", TypeConverters.toString
    )
    rawPredictionCol = _param(
        "rawPredictionCol", "column of the net's scores, a vector; empty: none", TypeConverters.toString
    )
    predictedLabelCol = _param(
        "predictedLabelCol",
        "column of the name of the predicted class, where labels are words; empty: none",
        TypeConverters.toString,
    )


class TrainingParams(ColumnParams):
    """How a network is trained."""

    net = _param(
        "net",
        "an entry of the zoo by name, the path of a prototxt, a NetSpec, a class or function that returns a module "
        "(defined in a notebook or a module of yours, or as 'package.module:callable'), or a torch.nn.Module, "
        "which gives the initial weights too",
    )
    optimizer = _param(
        "optimizer",
        "a class of torch.optim or its name, a functools.partial of one with its arguments, or the path of a Caffe "
        "solver",
    )
    learningRate = _param("learningRate", "base rate of the optimizer", TypeConverters.toFloat)
    loss = _param(
        "loss",
        "a function of torch.nn.functional by name, a function of yours of (outputs, targets), or 'net': the net's "
        "own; not given: cross_entropy for classes, mse_loss for numbers",
    )
    metrics = _param("metrics", "measures of validations: classes of torchmetrics, by name or as Measure(...)")
    numWorkers = _param("numWorkers", "replicas, a Spark task each; or (least, most)")
    localSteps = _param("localSteps", "steps between synchronisations", TypeConverters.toInt)
    sync = _param("sync", "'average', 'diloco' or 'none', Average(...) or DiLoCo(...)")
    maxEpochs = _param("maxEpochs", "passes over the training rows", TypeConverters.toFloat)
    maxRounds = _param("maxRounds", "in place of maxEpochs: rounds", TypeConverters.toInt)
    targetCols = _param("targetCols", "in place of labelCol: what the loss is given", TypeConverters.toListString)
    weightCol = _param("weightCol", "column of the rows' weights, from 0 on", TypeConverters.toString)
    validationIndicatorCol = _param(
        "validationIndicatorCol", "boolean column, true for rows to validate on", TypeConverters.toString
    )
    runDir = _param(
        "runDir",
        "directory of the run, which goes on where it is unfinished; not given: none is kept",
        _text,
    )
    store = _param("store", "directory of the prepared rows; not given: in the run's directory", _text)
    seed = _param("seed", "seeds weights, order, split and dropout", TypeConverters.toInt)
    precision = _param("precision", "'fp32', 'bf16' or 'fp16' (autocast)", TypeConverters.toString)
    checkpointEvery = _param("checkpointEvery", "rounds between checkpoints", TypeConverters.toInt)
    earlyStop = _param(
        "earlyStop",
        "end when validations no longer improve: True, the number of validations to wait, or a dict with measure, "
        "patience, min_delta; the model is then the best one",
    )
    callbacks = _param("callbacks", "functions that are given each event of the run, a dict, in the driver")
    verbose = _param("verbose", "print progress", TypeConverters.toBoolean)
    config = _param("config", "everything else: keys of a run's configuration, {'solver.policy': 'cosine'}")
