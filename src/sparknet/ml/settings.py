"""From Params to a run's configuration."""

import copy
import functools
import inspect
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pyspark.ml.param import Params

from sparknet.config import Measure, RunConfig, encode
from sparknet.config.files import config_from
from sparknet.data.sources.registry import DATA_FRAME_NAME
from sparknet.errors import ConfigError
from sparknet.ml.given_net import GivenNet, named, net_from
from sparknet.training.objectives.given_code import Code

__all__ = ["Average", "DiLoCo", "Fit", "fit_of", "in_params"]

_EPOCHS = 10.0
"""Passes over the rows where nothing says how long to train."""
_PATIENCE = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Average:
    """Average the replicas' weights (SparkNet, arXiv 1511.06051)."""

    pace: str = "fixed"
    """"fixed": every worker as many steps; "balanced": as many as fit into the median worker's time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiLoCo:
    """Step an outer optimiser on the replicas' mean (DiLoCo, arXiv 2311.08105)."""

    lr: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True
    pace: str = "fixed"
    """As of `Average`."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Fit:
    """A fit, as an estimator's Params say it."""

    config: RunConfig
    net: GivenNet
    code: Code
    """Of net and loss."""


def fit_of(params: Params, *, label_kind: str | None, validation_frame: bool = False) -> Fit:
    """The configuration that Params come to.

    Args:
        params: an estimator's.
        label_kind: "category" or "number" where the estimator says what labels are; None: their type does.
        validation_frame: a second DataFrame has the validation rows.

    Raises:
        ConfigError: naming Param or key, value, rule and remedy.
    """
    net = net_from(_needed(params, "net"))
    tables: dict[str, dict[str, Any]] = {"net": dict(net.section)}
    loss, code = _loss(params)
    for section, values in (
        ("data", _data(params, label_kind=label_kind, validation_frame=validation_frame)),
        ("run", _run(params)),
        ("solver", _solver(params)),
        ("sync", _sync(params)),
        ("objective", loss),
        ("cluster", {"device": _value(params, "device")}),
    ):
        tables[section] = values
    overrides = _flat(_value(params, "config") or {})
    if net.module is not None and overrides.get("net.weights"):
        raise ConfigError(
            f"config has net.weights, {overrides['net.weights']!r}, and net is a module with weights of its own: "
            "load them into it, or give its class"
        )
    _refuse_twice(params, overrides)
    for path, value in overrides.items():
        _put(tables, path, value)
    _settle(tables)
    return Fit(config=config_from(tables), net=net, code={**net.code, **code})


def _value(params: Params, name: str) -> Any:
    return params.getOrDefault(name) if params.isDefined(name) else None


def _needed(params: Params, name: str) -> Any:
    value = _value(params, name)
    if value is None:
        raise ConfigError(f"{name} is not given; {params.getParam(name).doc}: set {name}")
    return value


def _data(params: Params, *, label_kind: str | None, validation_frame: bool) -> dict[str, Any]:
    targets = _value(params, "targetCols") or [_value(params, "labelCol")]
    inputs = _value(params, "inputCols") or [_value(params, "featuresCol")]
    table: dict[str, Any] = {"source": DATA_FRAME_NAME, "inputs": inputs, "targets": targets, "columns": {}}
    if label_kind is not None:
        table["columns"][targets[0]] = {"kind": label_kind}
    if weight := _value(params, "weightCol"):
        table["weight"] = weight
    if store := _value(params, "store"):
        table["store"] = store
    indicator = _value(params, "validationIndicatorCol")
    if indicator and validation_frame:
        raise ConfigError(
            f"validationIndicatorCol is {indicator!r} and a DataFrame of validation rows is given; one says which "
            "rows are for validation: leave the other out"
        )
    if indicator:
        table["validation_column"] = indicator
    elif validation_frame:
        table["validation_path"] = DATA_FRAME_NAME
    return table


def _run(params: Params) -> dict[str, Any]:
    least, most = _workers(_value(params, "numWorkers"))
    table: dict[str, Any] = {"name": "fit", "seed": _value(params, "seed"), "workers": most, "min_workers": least}
    for name, key in (("maxEpochs", "epochs"), ("maxRounds", "rounds"), ("checkpointEvery", "checkpoint_every")):
        if (value := _value(params, name)) is not None:
            table[key] = value
    stop = _value(params, "earlyStop")
    if stop is not None and stop is not False:
        table |= {"early_stop": _early_stop(stop), "keep": "best"}
    return table


def _workers(given: object) -> tuple[int, int]:
    # Of numpy too, as from a grid over a range.
    pair: Any = given if isinstance(given, tuple | list) else (1, given)
    with suppress(TypeError):
        least, most = (operator.index(one) for one in pair) if len(pair) == 2 else (None, None)
        if least is not None and most is not None and not isinstance(pair[1], bool):
            return least, most
    raise ConfigError(f"numWorkers is {given!r}; it must be a whole number, or a pair (least, most) of them")


def _early_stop(given: object) -> dict[str, Any]:
    if given is True:
        return {"patience": _PATIENCE}
    if isinstance(given, int):
        return {"patience": given}
    if isinstance(given, Mapping):
        return {**cast("Mapping[str, Any]", given)}
    raise ConfigError(
        f"earlyStop is {given!r}; it must be True, a number of validations to wait, or a dict with measure, "
        "patience and min_delta"
    )


def _solver(params: Params) -> dict[str, Any]:
    table: dict[str, Any] = {"batch_size": _value(params, "batchSize"), **_optimizer(_value(params, "optimizer"))}
    if "learning_rate" in table and params.isSet("learningRate"):
        raise ConfigError("optimizer has lr, and learningRate is set; both say the same: leave one of them out")
    for name, key in (("learningRate", "learning_rate"), ("precision", "precision")):
        if (value := _value(params, name)) is not None:
            table[key] = value
    return table


def _optimizer(given: object) -> dict[str, Any]:
    if given is None:
        return {}
    arguments: dict[str, Any] = {}
    if isinstance(given, functools.partial):
        if given.args:
            raise ConfigError(
                f"optimizer has {given.args}, arguments without names: give them by name, as in lr=0.1"
            )
        arguments, given = dict(given.keywords), given.func
    if inspect.isclass(given) and issubclass(given, torch.optim.Optimizer):
        if getattr(torch.optim, given.__name__, None) is not given:
            raise ConfigError(
                f"optimizer is {given.__module__}.{given.__qualname__}; it must be a class of torch.optim, "
                "which every worker has: name one of these"
            )
        table: dict[str, Any] = {"optimizer": given.__name__}
        for own, key in (("lr", "learning_rate"), ("momentum", "momentum"), ("weight_decay", "weight_decay")):
            if own in arguments:
                table[key] = arguments.pop(own)
        return {**table, "arguments": arguments} if arguments else table
    if isinstance(given, str | Path):
        text = str(given)
        return {"prototxt" if "{" in text or "/" in text or text.endswith("prototxt") else "optimizer": text}
    raise ConfigError(
        f"optimizer is {given!r}; it must be a class of torch.optim or its name, a functools.partial of one, or "
        "the path of a Caffe solver"
    )


def _sync(params: Params) -> dict[str, Any]:
    given = _value(params, "sync")
    table: dict[str, Any] = {"local_steps": _value(params, "localSteps")}
    match given:
        case None:
            return table
        case str():
            return {**table, "strategy": given}
        case Average():
            return {**table, "strategy": "average", "pace": given.pace}
        case DiLoCo():
            outer = {
                "outer_learning_rate": given.lr,
                "outer_momentum": given.momentum,
                "outer_nesterov": given.nesterov,
            }
            return {**table, "strategy": "diloco", "pace": given.pace, **outer}
        case _:
            raise ConfigError(f"sync is {given!r}; it must be 'average', 'diloco', 'none', Average() or DiLoCo()")


def _loss(params: Params) -> tuple[dict[str, Any], Code]:
    table: dict[str, Any] = {}
    code: dict[str, Callable[..., Any]] = {}
    loss = _value(params, "loss")
    if isinstance(loss, str):
        table["loss"] = loss
    elif loss is not None:
        # One of torch's goes by its name there, under which more is known of it.
        own = getattr(loss, "__name__", "")
        if getattr(torch.nn.functional, own, None) is loss:
            table["loss"] = own
        elif callable(loss):
            table["loss"], found = named("loss", loss)
            code |= found
        else:
            raise ConfigError(f"loss is {loss!r}; it must be a function, or the name of one")
    metrics = _value(params, "metrics")
    if metrics is not None:
        table["measures"] = [_measure(one) for one in (metrics if isinstance(metrics, list | tuple) else [metrics])]
    return table, code


def _measure(given: object) -> Any:
    if isinstance(given, str | Mapping):
        return given
    if isinstance(given, Measure):
        return encode(given)
    if inspect.isclass(given) and given.__module__.startswith("torchmetrics"):
        return given.__name__
    raise ConfigError(
        f"metrics has {given!r}; each must be a class of torchmetrics, its name, or a sparknet.ml.Measure"
    )


def _flat(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"solver": {"policy": "step"}}` and `{"solver.policy": "step"}` alike."""
    flat: dict[str, Any] = {}
    for key, value in given.items():
        # Deeper tables are values: net.arguments is one.
        if isinstance(value, Mapping) and not prefix and "." not in key:
            flat |= _flat(cast("Mapping[str, Any]", value), f"{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


_PARAMS_OF_KEYS = {
    "solver.batch_size": "batchSize",
    "solver.learning_rate": "learningRate",
    "solver.optimizer": "optimizer",
    "solver.prototxt": "optimizer",
    "solver.precision": "precision",
    "sync.local_steps": "localSteps",
    "sync.strategy": "sync",
    "run.seed": "seed",
    "run.workers": "numWorkers",
    "run.min_workers": "numWorkers",
    "run.epochs": "maxEpochs",
    "run.rounds": "maxRounds",
    "run.early_stop": "earlyStop",
    "run.checkpoint_every": "checkpointEvery",
    "cluster.device": "device",
    "objective.loss": "loss",
    "objective.measures": "metrics",
    "net.name": "net",
    "net.prototxt": "net",
    "data.inputs": "inputCols",
    "data.image": "featuresCol",
    "data.targets": "targetCols",
    "data.label": "labelCol",
    "data.weight": "weightCol",
    "data.validation_column": "validationIndicatorCol",
    "data.store": "store",
}
_NEVER = ("data.source", "data.path", "data.validation_path", "data.labels", "data.beside", "data.tests")


_COLUMNS = ("data.inputs", "data.image", "data.targets", "data.label", "data.weight", "data.validation_column")
"""Keys with a Param of their own, which says it alone: others ask what the columns are."""
_PARTS = {"run.early_stop.": "earlyStop", "sync.outer_": "sync", "sync.pace": "sync"}
"""Beginnings of keys that a Param says too."""


def _refuse_twice(params: Params, overrides: Mapping[str, Any]) -> None:
    for key in overrides:
        if key in _COLUMNS:
            param = _PARAMS_OF_KEYS[key]
            raise ConfigError(f"config has {key}, which is Param {param}: set that, and leave {key} out")
        part = next((param for beginning, param in _PARTS.items() if key.startswith(beginning)), None)
        param = _PARAMS_OF_KEYS.get(key, part)
        if param is not None and params.hasParam(param) and params.isSet(param):
            raise ConfigError(f"config has {key}, and {param} is set; both say the same: leave one of them out")
        if key.startswith(_NEVER):
            raise ConfigError(f"config has {key}; the rows come from the DataFrame: leave it out")


def in_params(message: str) -> str:
    """A message about keys of a configuration, with the Params that say the same."""
    found = {key: param for key, param in _PARAMS_OF_KEYS.items() if re.search(rf"\b{re.escape(key)}\b", message)}
    if not found:
        return message
    told = ", ".join(f"{key} is Param {param}" for key, param in found.items())
    return f"{message} ({told})"


def _put(tables: dict[str, dict[str, Any]], path: str, value: object) -> None:
    section, _, key = path.partition(".")
    if not key:
        raise ConfigError(f"config has {path}; the form is {{'section.key': value}}, as in 'sync.local_steps'")
    table: Any = tables.setdefault(section, {})
    *inner, last = key.split(".")
    for one in inner:
        table = table.setdefault(one, {})
    before = table.get(last)
    # What the estimator says of a column stays beside what is said of others, and the user's values as they are.
    if isinstance(before, dict) and isinstance(value, Mapping):
        for name, own in cast("Mapping[str, Any]", value).items():
            _put({"": before}, f".{name}", own)
    else:
        table[last] = copy.deepcopy(value)


def _settle(tables: dict[str, dict[str, Any]]) -> None:
    """Fill in what was left open, and use the short form of section `data` where there is one input."""
    run, data = tables["run"], tables["data"]
    if not {"epochs", "rounds", "iterations"} & {key for key, value in run.items() if value is not None}:
        run["epochs"] = _EPOCHS
    if not {"validation_column", "validation_path", "validation_fraction", "validation"} & data.keys():
        data["validation"] = "none"
    if data.get("features") and data["inputs"] == ["features"]:
        # Columns that are put together make the only input.
        del data["inputs"]
    inputs: Sequence[str] = data.get("inputs", ())
    if len(inputs) == 1 and inputs[0] not in data["columns"]:
        data["image"] = inputs[0]
        del data["inputs"]
    if len(data["targets"]) == 1:
        data["label"] = data.pop("targets")[0]
    # A solver of Caffe's says itself how it goes on.
    if tables["solver"].get("prototxt") and "learning_rate" in tables["solver"]:
        raise ConfigError("learningRate is set and optimizer is a Caffe solver, which has base_lr: set it there")
