"""Estimators and models on disk, as pyspark.ml has them: `metadata/` by Spark, and beside it a model's own files.

A model's files are those of a run's `model/`: safetensors and JSON, which load without Spark. Code is not among
them. A net that a notebook defined is known by its name there, and must be defined again where the model is read.
"""

import dataclasses
import importlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import unquote

from pyspark.errors import AnalysisException
from pyspark.ml.param import Params
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter
from pyspark.sql import SparkSession
from torch import nn

from sparknet.data.storage.place import LOCAL, Place
from sparknet.errors import CheckpointError, ConfigError
from sparknet.ml.code_digest import digest_of_code
from sparknet.ml.given_net import named
from sparknet.ml.settings import Average, DiLoCo
from sparknet.training.objectives.given_code import Code, NetInstance
from sparknet.training.run_files.checkpoint import WEIGHTS
from sparknet.training.run_files.saved_model import Model, load_model, save_model
from sparknet.training.run_files.state_bytes import weights_file
from sparknet.training.sync.pieces import cut

__all__ = ["EstimatorReader", "EstimatorWriter", "ModelReader", "ModelWriter"]

_METADATA = "metadata"
_FILES = "model"
_INDEX = "model.json"
_PIECE_BYTES = 4 << 20
_SYNC = {"Average": Average, "DiLoCo": DiLoCo}
_NOT_WRITTEN = ("callbacks",)
"""Params that are objects of one program."""


class _Writer(MLWriter):
    def __init__(self, instance: Params) -> None:
        super().__init__()
        self.instance = instance

    def _handleOverwrite(self, path: str) -> None:
        # Without the Java machine, which a remote session has none of.
        if (place := _place_of(path, self.sparkSession)) is not None:
            place.delete()


class EstimatorWriter(_Writer):
    """Writes an estimator's Params."""

    def saveImpl(self, path: str) -> None:
        """Write `metadata/`.

        Raises:
            ConfigError: a Param is code that has no name elsewhere.
        """
        DefaultParamsWriter.saveMetadata(self.instance, path, self.sparkSession, paramMap=_written(self.instance))


class EstimatorReader(MLReader[Any]):
    """Reads what `EstimatorWriter` wrote."""

    def __init__(self, kind: type[Any]) -> None:
        super().__init__()
        self._kind = kind

    def load(self, path: str) -> Any:
        """The estimator."""
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        instance = self._kind()
        instance._resetUid(metadata["uid"])
        sync = metadata["paramMap"].get("sync")
        if isinstance(sync, dict):
            ((name, values),) = cast("dict[str, Any]", sync).items()
            metadata["paramMap"]["sync"] = _SYNC[name](**values)
        DefaultParamsReader.getAndSetParams(instance, metadata)
        return instance


class ModelWriter(_Writer):
    """Writes a model's Params and files."""

    def __init__(self, instance: Params, model: Model) -> None:
        super().__init__(instance)
        self._model = model

    def saveImpl(self, path: str) -> None:
        """Write `metadata/` and `model/`.

        Raises:
            CheckpointError, DataError: the files cannot be written.
        """
        _place_of(path, self.sparkSession)  # for what it refuses
        DefaultParamsWriter.saveMetadata(self.instance, path, self.sparkSession)
        # Where Spark has put that, which knows its file systems' defaults.
        place = _place_of(path, self.sparkSession)
        assert place is not None, "it was written a moment ago"
        with tempfile.TemporaryDirectory(prefix="sparknet-model-") as directory:
            weights = Path(directory) / WEIGHTS
            with weights.open("wb") as out:
                for piece in cut(weights_file(self._model.module), _PIECE_BYTES):
                    out.write(piece)
            made = Path(directory) / _FILES
            save_model(made, weights, self._model.description, self._model.chain)
            # The index last: without it there is no model.
            for file in sorted(made.iterdir(), key=lambda file: file.name == _INDEX):
                with file.open("rb") as source, (place / _FILES / file.name).writing() as target:
                    shutil.copyfileobj(source, target, _PIECE_BYTES)


class ModelReader(MLReader[Any]):
    """Reads what `ModelWriter` wrote."""

    def __init__(self, kind: type[Any]) -> None:
        super().__init__()
        self._kind = kind
        self._net: Callable[..., Any] | None = None
        self._loss: Callable[..., Any] | None = None

    def given(self, *, net: Callable[..., Any] | None = None, loss: Callable[..., Any] | None = None) -> Self:
        """Give the code of a model again whose net or loss has no name that could be imported here.

        Args:
            net: the class, function or module that the model was trained from.
            loss: the function.
        """
        self._net = NetInstance(net) if isinstance(net, nn.Module) else net
        self._loss = loss
        return self

    def load(self, path: str) -> Any:
        """The model.

        Raises:
            CheckpointError: it is not there, or damaged.
            NetError: its net is code that is not here.
        """
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        place = _place_of(path, self.sparkSession)
        assert place is not None, "its metadata were read a moment ago"
        with tempfile.TemporaryDirectory(prefix="sparknet-model-") as directory:
            model, code = self._read(_fetched(place / _FILES, Path(directory)))
        instance = self._kind(model, code=code)
        instance._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(instance, metadata)
        return instance

    def _read(self, directory: Path) -> tuple[Model, Code]:
        saved: dict[str, Any] = {}
        with suppress(OSError, ValueError):  # what is missing or damaged `load_model` says
            saved = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
        names = (saved.get("net", {}).get("name", ""), saved.get("objective", {}).get("loss", ""))
        pairs = zip(names, (self._net, self._loss), strict=True)
        code = {name: found for name, one in pairs if name and (found := one or _defined_here(name))}
        return load_model(directory, code=code), code


def _defined_here(name: str) -> Callable[..., Any] | None:
    """What this program has under the name of code that another one gave."""
    reference, _, digest = name.partition("#")
    module_name, _, path = reference.partition(":")
    # Of a module, and of a function with arguments, nobody knows how it was made.
    if not digest or path.endswith(")"):
        return None
    with suppress(Exception):  # a module of the user's: it may fail in any way
        found = inspect.getattr_static(importlib.import_module(module_name), path, None)
        # Only the very same code: the weights would fit another one too.
        same = any(digest == digest_of_code(param, found) for param in ("net", "loss"))
        return found if callable(found) and same else None
    return None


def _fetched(place: Place, directory: Path) -> Path:
    if place.local:
        return place.local
    for file in place.files():
        with place.storage.place(file.uri).open() as source, (directory / file.name).open("wb") as target:
            shutil.copyfileobj(source, target, _PIECE_BYTES)
    return directory


def _place_of(path: str, spark: SparkSession) -> Place | None:
    """Where a saved folder lies; None: there is none.

    Raises:
        ConfigError: Spark would take the path for a pattern.
    """
    if set(path) & set("*?[]{}"):
        raise ConfigError(
            f"{path} has letters that Spark takes for a pattern; name a folder without *, ?, [ ] and {{ }}"
        )
    try:
        files = spark.read.text(f"{path}/{_METADATA}").inputFiles()
    except AnalysisException:  # no such path
        return None
    if not files:
        raise CheckpointError(f"{path} holds no {_METADATA} of a saved estimator or model; give such a folder")
    # Hadoop's name of S3's scheme.
    uri = files[0].rsplit(f"/{_METADATA}/", 1)[0]
    # Of `file:` it decodes what Spark has encoded itself; the key of an object it takes letter by letter.
    return LOCAL.place(uri if uri.startswith("file:") else unquote(uri).replace("s3a://", "s3://", 1))


def _written(instance: Params) -> dict[str, Any]:
    """The Params that were set, as JSON values."""
    written: dict[str, Any] = {}
    for param, value in instance.extractParamMap().items():
        if not instance.isSet(param) or param.name in _NOT_WRITTEN:
            continue
        if dataclasses.is_dataclass(value) and type(value).__name__ in _SYNC:
            written[param.name] = {type(value).__name__: dataclasses.asdict(cast("Any", value))}
        else:
            written[param.name] = _as_json(param.name, value)
    return written


def _as_json(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple) and any(map(callable, cast("list[object]", value))):
        return [_as_json(name, one) for one in cast("list[object]", value)]
    if callable(value) and not isinstance(value, nn.Module):
        if name in ("optimizer", "metrics") and inspect.isclass(value):
            return value.__name__
        found, code = named(name, value)
        if not code:
            return found
    try:
        json.dumps(value)
    except TypeError:
        raise ConfigError(
            f"{name} is {value!r}, which a saved estimator cannot hold; give it by name, "
            "'package.module:callable', or in config"
        ) from None
    return value
