"""Twelve iterations of every solver case against what Caffe computed, in float32 as Caffe."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_cases import Arrays, Case, case, cases, distance
from sparknet.caffe.solver.caffe_solver import CaffeSolver

ITERATIONS = 12
RESUMED = ["sgd_resume", "adam_resume_hdf5"]


def made(case: Case) -> CaffeSolver:
    """The case's solver at its start values."""
    solver = CaffeSolver.from_prototxt(case.path / "solver.prototxt")
    solver.net.load_weights(case.path / "initial.caffemodel")
    return solver


def loaded(case: Case, name: str) -> Arrays:
    with np.load(case.path / f"{name}.npz") as arrays:
        return dict(arrays)


def batches(case: Case, first: int = 0) -> list[dict[str, np.ndarray]]:
    """The batches from iteration `first` on."""
    inputs = case.inputs
    size = len(next(iter(inputs.values()))) // ITERATIONS
    return [{name: inputs[name][at] for name in inputs} for at in range(first * size, ITERATIONS * size)]


def iterations(solver: CaffeSolver, given: list[dict[str, np.ndarray]]) -> Iterator[float]:
    """Take step by step, so that what stands between them can be looked at."""
    size = solver.settings.rule.iter_size
    for at in range(0, len(given), size):
        (loss,) = solver.step(given[at : at + size])
        yield loss


def tensors(solver: CaffeSolver) -> list[Tensor]:
    """All that a run leaves: weights and histories."""
    weights = [blob.detach().clone() for blobs in solver.net.weights().values() for blob in blobs]
    return weights + [blob.clone() for blob in solver.history()]


def check_moment(case: Case, solver: CaffeSolver) -> None:
    """Hold weights and histories after some iterations against Caffe's."""
    moment, tolerance = solver.iteration, case.index["tolerance"]
    params, weights = loaded(case, "params"), solver.net.weights()
    expected = {key: array for key, array in params.items() if key.startswith(f"{moment}/")}
    assert expected
    for key, array in expected.items():
        _, layer, place = key.split("/")
        mine, start = weights[layer][int(place)].detach(), params[f"0/{layer}/{place}"]
        assert distance(mine, array) <= tolerance["params"], key
        assert distance(mine.numpy() - start, array - start) <= tolerance["update"], f"update of {key}"
    if moment:
        check_history(case, solver)


def check_history(case: Case, solver: CaffeSolver) -> None:
    history, mine = loaded(case, "history"), solver.history()
    keys = [key for key in history if key.startswith(f"{solver.iteration}/")]
    assert len(keys) == len(mine)
    for place, blob in enumerate(mine):
        key = f"{solver.iteration}/{place}"
        assert distance(blob, history[key]) <= case.index["tolerance"]["history"], f"history {key}"


@pytest.mark.parametrize("case", cases("solvers"), ids=lambda case: case.name)
def test_twelve_iterations_as_caffe(case: Case):
    solver, trace = made(case), loaded(case, "trace")
    tolerance = case.index["tolerance"]
    losses = {key.removeprefix("loss/"): values for key, values in trace.items() if key != "lr"}
    seen = {0: check_moment(case, solver)}
    rates = [solver.learning_rate()]
    for _ in iterations(solver, batches(case)):
        done = solver.iteration
        for name, values in losses.items():
            # of the iteration's last batch
            assert float(solver.outputs[name]) == pytest.approx(values[done - 1], rel=tolerance["loss"]), done
        if "lr" in trace:
            assert solver.last_rate == rates[-1]
            assert solver.last_rate == pytest.approx(trace["lr"][done - 1], rel=1e-6), done
        if done in (1, 5, 12):
            seen[done] = check_moment(case, solver)
        rates.append(solver.learning_rate())
    assert list(seen) == [0, 1, 5, 12]


@pytest.mark.parametrize("name", RESUMED)
def test_going_on_from_a_snapshot_of_caffes(name: str):
    this = case(name)
    (state,) = this.path.glob("snap_iter_5.solverstate*")
    solver = CaffeSolver.from_prototxt(this.path / "solver.prototxt")
    solver.restore(state)
    assert solver.iteration == 5
    check_moment(this, solver)
    solver.step(batches(this, first=5))
    assert solver.iteration == ITERATIONS
    check_moment(this, solver)


@pytest.mark.parametrize("name", RESUMED)
def test_a_snapshot_of_ours_continues_to_the_same_bits(name: str, tmp_path):
    this = case(name)
    unbroken = made(this)
    unbroken.step(batches(this))
    first = made(this)
    size = first.settings.rule.iter_size
    first.step(batches(this)[: 5 * size])
    _, state = first.snapshot(str(tmp_path / "ours"))
    second = CaffeSolver.from_prototxt(this.path / "solver.prototxt")
    second.restore(state)
    second.step(batches(this, first=5))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(tensors(second), tensors(unbroken), strict=True))


def test_a_state_of_caffes_is_written_again_byte_for_byte(tmp_path, monkeypatch):
    this = case("sgd_resume")
    solver = CaffeSolver.from_prototxt(this.path / "solver.prototxt")
    solver.restore(this.path / "snap_iter_5.solverstate")
    # the state names its model by the prefix as given, which is how Caffe's own came to be
    monkeypatch.chdir(tmp_path)
    model, state = solver.snapshot()
    assert state.read_bytes() == (this.path / "snap_iter_5.solverstate").read_bytes()
    assert model.read_bytes() == (this.path / "snap_iter_5.caffemodel").read_bytes()
