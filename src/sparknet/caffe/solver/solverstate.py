"""Solver states, `.solverstate` and `.solverstate.h5`, as Caffe reads and writes them (sgd_solver.cpp)."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from google.protobuf.message import DecodeError

from sparknet.caffe.net_files import written_whole
from sparknet.caffe.schema import SolverState
from sparknet.caffe.weights.blobs import Array, array_of, blob_of
from sparknet.errors import CheckpointError, NetError

if TYPE_CHECKING:
    import h5py

__all__ = ["SavedState", "read_state", "write_state"]

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_LIMIT_BYTES = 2**31 - 1  # no protobuf message may be larger, here and in Caffe
_MOST = 2**31 - 1
_REMEDY = "give a .solverstate or .solverstate.h5 file that a snapshot left"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SavedState:
    """What a solver needs, beside the weights, to go on."""

    iteration: int
    """Finished iterations."""
    current_step: int
    """Steps of the learning-rate policy that were passed."""
    learned_net: str
    """File of the weights, as the state names it; empty for none."""
    history: tuple[Array, ...]
    """One array per learnable parameter and history, in Caffe's order; float32, or float64 of a float64 net."""


def read_state(path: str | os.PathLike[str]) -> SavedState:
    """Read a state of either form, told apart by what the file begins with.

    Raises:
        CheckpointError: the file is missing, truncated, or no solver state, or a number in it is none that a
            solver has.
    """
    name = os.fspath(path)
    try:
        with Path(name).open("rb") as file:
            magic = file.read(len(_HDF5_MAGIC))
        if magic == _HDF5_MAGIC:
            return _checked(_read_hdf5(name), name)
        if name.endswith(".h5"):
            raise CheckpointError(f"{name}: it begins with {magic!r} and so is no HDF5 file; {_REMEDY}")
        return _checked(_read_binary(name), name)
    except NetError as error:
        raise CheckpointError(f"{name}: a history blob is damaged: {error}; {_REMEDY}") from error
    # h5py tells damage with any of the others.
    except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(f"{name}: the solver state cannot be read: {reason}; {_REMEDY}") from error


def write_state(state: SavedState, path: str | os.PathLike[str]) -> None:
    """Write a state, whole or not at all; as HDF5 where the name ends in `.h5`.

    Raises:
        CheckpointError: it is larger than protobuf allows.
        NetError: the file cannot be written.
    """
    with written_whole(path) as draft:
        if os.fspath(path).endswith(".h5"):
            _write_hdf5(state, draft)
        else:
            _write_binary(state, draft)


def _checked(state: SavedState, name: str) -> SavedState:
    for key, number in (("iter", state.iteration), ("current_step", state.current_step)):
        if not 0 <= number <= _MOST:
            raise CheckpointError(f"{name}: {key} is {number}; it must be from 0 to {_MOST}; {_REMEDY}")
    return state


def _read_binary(name: str) -> SavedState:
    message = SolverState()
    try:
        message.ParseFromString(Path(name).read_bytes())
    except DecodeError as error:
        raise CheckpointError(f"{name}: it is truncated or no solver state; {_REMEDY}") from error
    # Other messages may happen to parse; a state always tells its iteration.
    if not message.HasField("iter"):
        raise CheckpointError(f"{name}: it tells no iteration and so is no solver state; {_REMEDY}")
    learned_net = cast("object", message.learned_net)
    if not isinstance(learned_net, str):  # protobuf hands out what is no UTF-8 as bytes
        learned_net = os.fsdecode(cast("bytes", learned_net))
    return SavedState(
        iteration=message.iter,
        current_step=message.current_step,
        learned_net=learned_net,
        history=tuple(array_of(blob) for blob in message.history),
    )


def _write_binary(state: SavedState, path: Path) -> None:
    # Found out before the message is built: protobuf says it only after all of it was copied.
    size = sum(array.nbytes for array in state.history)
    if size > _LIMIT_BYTES:
        raise CheckpointError(
            f"the solver's history has {size} bytes; a .solverstate has at most {_LIMIT_BYTES} (2 GiB): set "
            "snapshot_format: HDF5"
        )
    message = SolverState(
        iter=state.iteration,
        learned_net=state.learned_net,
        history=[blob_of(array) for array in state.history],
        current_step=state.current_step,
    )
    path.write_bytes(message.SerializeToString())


def _read_hdf5(name: str) -> SavedState:
    # Imported here, as wherever HDF5 is read: nets without it need not have it.
    import h5py

    with h5py.File(name, "r") as file:
        missing = [key for key in ("iter", "current_step", "history") if key not in file]
        if missing:
            raise CheckpointError(f"{name}: it lacks {', '.join(missing)} and so is no solver state; {_REMEDY}")
        entries: dict[str, Any] = {str(key): file[key] for key in file}
        history: Any = entries["history"]
        return SavedState(
            iteration=int(entries["iter"][0]),
            current_step=int(entries["current_step"][0]),
            learned_net=os.fsdecode(bytes(entries["learned_net"][()])) if "learned_net" in entries else "",
            # By number: the file lists its names as texts, 10 before 2.
            history=tuple(_blob(history[str(place)]) for place in range(len(history))),
        )


def _blob(dataset: Any) -> Array:
    return np.asarray(dataset[()], np.float64 if dataset.dtype == np.float64 else np.float32)


def _write_hdf5(state: SavedState, path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for key, number in (("iter", state.iteration), ("current_step", state.current_step)):
            # An array of one, as Caffe's hdf5_save_int writes it.
            file.create_dataset(key, data=np.array([number], "<i4"))
        _write_c_string(file, "learned_net", state.learned_net)
        history = file.create_group("history")
        for place, array in enumerate(state.history):
            history.create_dataset(str(place), data=array)


def _write_c_string(file: "h5py.File", key: str, text: str) -> None:
    """A string of fixed length with its terminating zero: Caffe reads it into a buffer of just that length."""
    import h5py

    data = text.encode()
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(data) + 1)
    space = h5py.h5s.create(h5py.h5s.SCALAR)
    dataset = h5py.h5d.create(file.id, key.encode(), kind, space)
    dataset.write(space, space, np.array(data, f"S{len(data) + 1}"), mtype=kind)
