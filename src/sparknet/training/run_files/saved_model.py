"""The product of a run: `model/`, with the weights and what is needed to rebuild the module.

`weights.safetensors` is the net's state_dict (of a Caffe net phase TRAIN's), `preprocess.safetensors` the mean,
scale and cut that inputs go through, `model.json` the net's name and arguments, or its whole prototxt, and its
rows: input, label and classes. All of it loads without this library.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn

from sparknet.config import Data, Net, decode, encode
from sparknet.data.loading.transform import Normalise
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.rows.table_encoding import TableEncoding
from sparknet.data.shards.manifest import Manifest
from sparknet.errors import CheckpointError, ConfigError
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.checkpoint import WEIGHTS
from sparknet.training.run_files.state_bytes import load_weights
from sparknet.whole_files import whole_directory

__all__ = ["Description", "Model", "describe", "load_model", "save_model"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What `model.json` says."""

    net: Net
    rows: RowSchema
    """What was stored, before anything was cut out."""
    data: Data
    """How the training data were read: the default for testing."""
    table: TableEncoding | None = None
    """How columns of words became numbers; None where rows have the input and the label as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A trained net with the preprocessing that it expects."""

    description: Description
    objective: Objective
    """With the trained weights."""
    normalise: Normalise

    @property
    def module(self) -> nn.Module:
        """The net itself: what was trained, of a Caffe net phase TRAIN."""
        return self.objective.module


def save_model(directory: Path, weights: Path, description: Description, normalise: Normalise) -> None:
    """Write `directory` whole or not at all; an older one is replaced.

    Raises:
        CheckpointError: it cannot be written.
    """
    # Not ascontiguousarray, which would make the scale one-dimensional.
    arrays = {name: np.asarray(array, order="C") for name, array in normalise.to_arrays().items()}
    try:
        # The weights as the checkpoint has them, byte for byte: they were checked there against their hash.
        with whole_directory(directory) as draft:
            shutil.copyfile(weights, draft / WEIGHTS)
            save_file(arrays, draft / "preprocess.safetensors")
            (draft / "model.json").write_text(json.dumps(encode(description), indent=1), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise CheckpointError(
            f"the model cannot be written to {directory}: {reason}; make room there, then resume"
        ) from error


def describe(net: Net, data: Data, manifest: Manifest) -> Description:
    """The description of a model trained on prepared data."""
    net = replace(net, weights="")  # they were only the beginning
    return Description(net=net, rows=manifest.rows, data=data, table=manifest.table)


def load_model(directory: Path) -> Model:
    """Rebuild the module of a finished run.

    Raises:
        CheckpointError: the directory is not there, or damaged.
        NetError: the net cannot be built here.
    """
    try:
        description = decode(Description, json.loads((directory / "model.json").read_text(encoding="utf-8")))
        normalise = Normalise.from_arrays(load_file(directory / "preprocess.safetensors"))
        weights = (directory / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory} holds no finished model ({error.filename} is missing); finish the run with "
            "`sparknet resume`"
        ) from error
    except (OSError, ValueError, ConfigError, SafetensorError) as error:
        raise CheckpointError(f"{directory} is damaged: {error}; `sparknet resume` writes it again") from error
    # The seed is of no account: the weights replace what the fillers drew.
    recipe = Recipe.read(description.net)
    objective = build_objective(recipe, description.rows, batch_size=1, seed=0, data=description.data)
    objective.module.eval()
    try:
        load_weights(objective.module, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{directory / WEIGHTS}: {error}") from error
    return Model(description=description, objective=objective, normalise=normalise)
