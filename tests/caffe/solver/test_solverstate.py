"""Solver states in both forms, and files that are none."""

import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from sparknet.caffe.schema import LooseBlobProto, SolverState
from sparknet.caffe.solver.named_files import find_learned_net
from sparknet.caffe.solver.solverstate import SavedState, read_state, write_state
from sparknet.errors import CheckpointError, NetError

ENDINGS = [".solverstate", ".solverstate.h5"]
both_forms = pytest.mark.parametrize("ending", ENDINGS)


def state(dtype: str = "f4") -> SavedState:
    random = np.random.default_rng(1)
    history = [random.standard_normal(shape).astype(dtype) for shape in [(2, 3), (3,), (1,), ()]]
    return SavedState(iteration=7, current_step=2, learned_net="dir/näme.caffemodel", history=tuple(history))


@both_forms
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_what_is_written_is_read(tmp_path: Path, ending: str, dtype: str):
    path, given = tmp_path / f"a{ending}", state(dtype)
    write_state(given, path)
    found = read_state(path)
    assert (found.iteration, found.current_step, found.learned_net) == (7, 2, "dir/näme.caffemodel")
    assert len(found.history) == len(given.history)
    for mine, theirs in zip(found.history, given.history, strict=True):
        assert mine.dtype == dtype
        np.testing.assert_array_equal(mine, theirs)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_eleven_histories_keep_their_order_in_hdf5(tmp_path: Path):
    history = tuple(np.full(2, number, "f4") for number in range(11))
    path = tmp_path / "a.solverstate.h5"
    write_state(SavedState(iteration=1, current_step=0, learned_net="m", history=history), path)
    assert [int(array[0]) for array in read_state(path).history] == list(range(11))


def test_hdf5_has_the_types_that_caffe_reads(tmp_path: Path):
    path = tmp_path / "a.solverstate.h5"
    write_state(state(), path)
    with h5py.File(path) as file:
        kind = file["learned_net"].id.get_type()
        # a terminating zero within the length: Caffe takes the bytes as a C string
        assert (kind.get_size(), kind.get_strpad()) == (
            len("dir/näme.caffemodel".encode()) + 1,
            h5py.h5t.STR_NULLTERM,
        )
        assert (file["iter"].shape, file["iter"].dtype) == ((1,), np.dtype("<i4"))
        assert file["history/0"].dtype == np.dtype("<f4")


def test_numbers_that_are_not_packed_are_read(tmp_path: Path):
    message = SolverState(iter=3)
    blob = LooseBlobProto(num=1, channels=1, height=1, width=2)
    # 0x2d: field 5 as a single float
    unpacked = b"\x2d" + np.float32(1.5).tobytes() + b"\x2d" + np.float32(-2).tobytes()
    message.history.add().ParseFromString(blob.SerializeToString() + unpacked)
    path = tmp_path / "a.solverstate"
    path.write_bytes(message.SerializeToString())
    (array,) = read_state(path).history
    np.testing.assert_array_equal(array, np.array([[[[1.5, -2]]]], "f4"))


@both_forms
def test_a_missing_file(tmp_path: Path, ending: str):
    with pytest.raises(CheckpointError, match=rf"a{ending}: the solver state cannot be read: No such file"):
        read_state(tmp_path / f"a{ending}")


@both_forms
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_file(tmp_path: Path, ending: str, kept: float):
    path = tmp_path / f"a{ending}"
    write_state(state(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError, match=rf"a{ending}: .*; give a .solverstate"):
        read_state(path)


def test_hdf5_by_name_only(tmp_path: Path):
    path = tmp_path / "a.solverstate.h5"
    write_state(state(), tmp_path / "a.solverstate")
    (tmp_path / "a.solverstate").rename(path)
    with pytest.raises(CheckpointError, match=r"begins with .* and so is no HDF5 file"):
        read_state(path)


@pytest.mark.parametrize("content", [b"", b"no solver state at all", bytes(range(256)), b"\x12\x01m"])
def test_other_bytes(tmp_path: Path, content: bytes):
    path = tmp_path / "a.solverstate"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no solver state"):
        read_state(path)


def test_hdf5_of_something_else(tmp_path: Path):
    path = tmp_path / "a.solverstate.h5"
    with h5py.File(path, "w") as file:
        file["data"] = 1
    with pytest.raises(CheckpointError, match="lacks iter, current_step, history and so is no solver state"):
        read_state(path)
    with h5py.File(path, "w") as file:
        file["iter"], file["current_step"], file["history"] = [1], [0], 3
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(path)


def test_a_blob_with_too_few_numbers(tmp_path: Path):
    message = SolverState(iter=3)
    blob = message.history.add()
    blob.shape.dim.extend([2, 2])
    blob.data.append(np.zeros(3, "f4").tobytes())
    path = tmp_path / "a.solverstate"
    path.write_bytes(message.SerializeToString())
    with pytest.raises(CheckpointError, match=r"a history blob is damaged: .*4 numbers and there are 3"):
        read_state(path)


@both_forms
def test_a_directory_that_is_not_there(tmp_path: Path, ending: str):
    with pytest.raises(NetError, match="cannot be written"):
        write_state(state(), tmp_path / "nowhere" / f"a{ending}")


@both_forms
@pytest.mark.parametrize(
    ("key", "told"),
    [("iteration", r"iter is -5; it must be from 0"), ("current_step", r"current_step is -2; it must be from 0")],
)
def test_numbers_that_no_solver_has(tmp_path: Path, ending: str, key: str, told: str):
    path = tmp_path / f"a{ending}"
    write_state(replace(state(), **{key: {"iteration": -5, "current_step": -2}[key]}), path)
    with pytest.raises(CheckpointError, match=rf"a{ending}: {told} to 2147483647; give a .solverstate"):
        read_state(path)


def test_a_number_that_caffe_cannot_hold(tmp_path: Path):
    path = tmp_path / "a.solverstate.h5"
    write_state(state(), path)
    with h5py.File(path, "r+") as file:
        del file["iter"]
        file["iter"] = np.array([2**40])
    with pytest.raises(CheckpointError, match=r"iter is 1099511627776; it must be from 0 to 2147483647"):
        read_state(path)


def test_a_name_of_weights_that_is_no_utf8_is_a_path_all_the_same(tmp_path: Path):
    path = tmp_path / "a.solverstate"
    path.write_bytes(SolverState(iter=1).SerializeToString() + b"\x12\x02\xff\xfe")
    write_state(state(), tmp_path / "a.solverstate.h5")
    with h5py.File(tmp_path / "a.solverstate.h5", "r+") as file:
        del file["learned_net"]
        file["learned_net"] = np.bytes_(b"\xff\xfe")
    weights = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    weights.touch()
    for name in ("a.solverstate", "a.solverstate.h5"):
        assert find_learned_net(read_state(tmp_path / name).learned_net, path) == weights
