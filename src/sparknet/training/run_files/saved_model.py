"""The product of a run: `model/`, with the weights and what is needed to rebuild the module.

`weights.safetensors` is the net's state_dict (of a Caffe net phase TRAIN's), `preprocess.safetensors` the mean,
scale and cut that columns go through, `model.json` the net's name and arguments, or its whole prototxt, and its
rows: inputs, targets and classes. All of it loads without this library.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn

from sparknet.config import Data, Net, RunConfig, decode, encode
from sparknet.config import Objective as ObjectiveSection
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.rows.table_encoding import TableEncoding
from sparknet.errors import CheckpointError, ConfigError, DataError
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.given_code import Code
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.preprocessing import Chain, chain_arrays, chain_from
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.checkpoint import WEIGHTS
from sparknet.training.run_files.remote_copy import fetch_directory
from sparknet.training.run_files.run_place import run_place
from sparknet.training.run_files.state_bytes import load_weights
from sparknet.training.run_files.tensor_bytes import read_bytes
from sparknet.whole_files import whole_directory

__all__ = ["Description", "Model", "describe", "load_model", "save_model"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What `model.json` says."""

    net: Net
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    """What was minimised, and what is measured."""
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
    chain: Chain
    """By column what its values go through."""
    tests: Mapping[str, Chain] = field(default_factory=dict[str, Chain])
    """By name the same for further rows that the run measures; the run directory has them, not the model."""

    test_net_only: bool = False
    """The objective is a Caffe file's TEST net, with weights from a file: there is no other."""

    @property
    def module(self) -> nn.Module:
        """The net itself: what was trained, of a Caffe net phase TRAIN."""
        return self.objective.module


def save_model(directory: Path, weights: Path, description: Description, chain: Chain) -> None:
    """Write `directory` whole or not at all; an older one is replaced.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        # The weights as the checkpoint has them, byte for byte: they were checked there against their hash.
        with whole_directory(directory) as draft:
            shutil.copyfile(weights, draft / WEIGHTS)
            save_file(chain_arrays(chain), draft / "preprocess.safetensors")
            (draft / "model.json").write_text(json.dumps(encode(description), indent=1), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise CheckpointError(
            f"the model cannot be written to {directory}: {reason}; make room there, then resume"
        ) from error


def describe(config: RunConfig, rows: RowSchema, table: TableEncoding | None) -> Description:
    """The description of a model trained on such rows."""
    net = replace(config.net, weights="", weights_map={})  # they were only the beginning
    return Description(net=net, objective=config.objective, rows=rows, data=config.data, table=table)


def load_model(
    where: str | Path,
    *,
    python_path: tuple[str, ...] | None = None,
    code: Code | None = None,
    s3_endpoint: str = "",
) -> Model:
    """Rebuild the module of a finished run.

    Args:
        where: path or URI of what `save_model` wrote; what is in a store is fetched first.
        python_path: where modules of a Caffe net's Python layers are looked for, behind PYTHONPATH; none: where
            training found them. Not given: such layers are refused, since their code would run.
        code: what a program gives for the names of net and loss, which the model has by their names alone.
        s3_endpoint: an S3-compatible server; not given: as the environment says.

    Raises:
        CheckpointError: the directory is not there, or damaged.
        NetError: the net cannot be built here.
        UsageError: it is no path and no URI of a store.
    """
    place = run_place(where, s3_endpoint=s3_endpoint)
    if place.local is not None:
        return _load(Path(where) if isinstance(where, Path) else place.local, python_path, code)
    with tempfile.TemporaryDirectory(prefix="sparknet-model-") as directory:
        try:
            fetch_directory(place, Path(directory))
        except (DataError, OSError) as error:
            raise CheckpointError(f"{place} cannot be fetched: {error}") from error
        try:
            return _load(Path(directory), python_path, code)
        except CheckpointError as error:
            # It is nobody's business where it was fetched to.
            raise CheckpointError(str(error).replace(directory, place.uri)) from error


def _load(directory: Path, python_path: tuple[str, ...] | None, code: Code | None) -> Model:
    try:
        description = decode(Description, json.loads((directory / "model.json").read_text(encoding="utf-8")))
        chain = chain_from(load_file(directory / "preprocess.safetensors"))
        weights = read_bytes(directory / WEIGHTS)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory} holds no finished model ({error.filename} is missing); finish the run with "
            "`sparknet resume`"
        ) from error
    except (OSError, ValueError, ConfigError, SafetensorError) as error:
        raise CheckpointError(f"{directory} is damaged: {error}; `sparknet resume` writes it again") from error
    # That the run allowed it says that the net needs it, and not that whoever has the files now wants it.
    net = replace(description.net, allow_python_layers=python_path is not None)
    description = replace(description, net=replace(net, python_path=python_path or net.python_path))
    # The seed is of no account: the weights replace what the fillers drew.
    recipe = Recipe.read(description.net, objective=description.objective, code=code)
    objective = build_objective(recipe, description.rows, batch_size=1, seed=0, data=description.data)
    objective.module.eval()
    try:
        load_weights(objective.module, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{directory / WEIGHTS}: {error}") from error
    return Model(description=description, objective=objective, chain=chain)
