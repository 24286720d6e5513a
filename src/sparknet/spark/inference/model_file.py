"""A model's tensors as a file that is named by what it holds, and that Spark takes to each executor once.

Weights in a task's closure, or in a broadcast of Python's, would pass through the heaps of the Java machines and
be unpickled by every Python worker for itself. A file lies on the executor's disk, and its pages in memory are the
same for all workers of the host that map it.
"""

import hashlib
import mmap
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from pyspark import SparkFiles
from pyspark.sql import SparkSession
from torch import Tensor, nn

from sparknet.errors import CheckpointError, ClusterError
from sparknet.training.objectives.preprocessing import Chain, chain_arrays, chain_from
from sparknet.training.run_files.saved_model import Model
from sparknet.training.run_files.state_bytes import fill_weights
from sparknet.training.run_files.tensor_bytes import TensorFile, load_tensors

__all__ = ["ModelTensors", "hand_out", "open_file"]

_PIECE_BYTES = 64 << 20
_WEIGHTS, _CHAIN = "weights.", "chain."

_lock = threading.Lock()
_handed_out: "WeakKeyDictionary[SparkSession, set[str]]" = WeakKeyDictionary()
"""By session the files that it has."""
_directories: list[tempfile.TemporaryDirectory[str]] = []
"""Where the files of this process are, as long as it lives: a classic session serves them from there to executors
that come later."""


def hand_out(spark: SparkSession, model: Model) -> str:
    """Let the tasks of a session find a model's tensors.

    A model that the session has been given before, or one with the same tensors, costs a pass over them in memory.

    Args:
        spark: the session, classic or Connect.
        model: its weights, and what its columns go through.

    Returns:
        The file's name, for `open_file`.

    Raises:
        ClusterError: the file cannot be written here.
    """
    tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in model.module.state_dict().items()}
    # Beside the weights: a mean image may be larger than a task should be.
    arrays = chain_arrays(model.chain, _CHAIN)
    tensors |= {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    file = TensorFile(tensors)
    digest = hashlib.sha256()
    for piece in file.pieces(_PIECE_BYTES):
        digest.update(piece)
    name = f"sparknet-{digest.hexdigest()}.safetensors"
    with _lock:
        known = _handed_out.setdefault(spark, set())
        if name not in known:
            # By this way also in classic sessions: it looks first whether the file is there already.
            spark.addArtifact(str(_written(file, name)), file=True)
            known.add(name)
    return name


def _written(file: TensorFile, name: str) -> Path:
    if not _directories:
        _directories.append(tempfile.TemporaryDirectory(prefix="sparknet-models-"))
    path = Path(_directories[0].name) / name
    if not path.exists():
        draft = path.with_suffix(".part")
        try:
            with draft.open("wb") as out:
                for piece in file.pieces(_PIECE_BYTES):
                    out.write(piece)
            draft.rename(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise ClusterError(
                f"{path} cannot be written: {error}; a model of {len(file):,} bytes travels as a file: make room "
                "there, or name a directory with more in TMPDIR"
            ) from error
    return path


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class ModelTensors:
    """What such a file holds; the tensors are views of the mapped file."""

    weights: Mapping[str, Tensor]
    chain: Chain

    def fill(self, module: nn.Module) -> None:
        """Give a module its weights, which then are the mapped ones wherever they can be.

        Raises:
            CheckpointError: names or shapes are not this module's.
        """
        fill_weights(module, self.weights)
        for name, parameter in module.named_parameters():
            mapped = self.weights.get(name)
            # Weights in another memory order stay copies, and so does what the module has made something else of.
            if mapped is not None and mapped.stride() == parameter.stride() and torch.equal(mapped, parameter):
                # The same object: other modules may have it too.
                parameter.data = mapped


def open_file(name: str) -> ModelTensors:
    """The tensors of a model, in a task.

    Raises:
        CheckpointError: the file is damaged, or is not there.
    """
    path = Path(SparkFiles.get(name))
    try:
        with path.open("rb") as file:
            # A private mapping: torch wants memory that may be written, and a page that nobody writes is shared.
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except OSError as error:
        free = shutil.disk_usage(path.parent if path.parent.exists() else "/").free
        raise CheckpointError(
            f"{path} cannot be read: {error}; Spark takes the model there ({free:,} bytes are free): see the "
            "executor's log, then run again"
        ) from error
    found = load_tensors(data)
    chain = {key.removeprefix(_CHAIN): values.numpy() for key, values in found.items() if key.startswith(_CHAIN)}
    weights = {key.removeprefix(_WEIGHTS): values for key, values in found.items() if key.startswith(_WEIGHTS)}
    return ModelTensors(weights=weights, chain=chain_from(chain))
