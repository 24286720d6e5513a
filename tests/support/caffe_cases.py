"""Reference cases that the real Caffe computed, and how a net of ours is held against them.

The rules (`distance`, kinks, medians, windows outside the image) are those of `caffe/README.md`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from places import REFERENCE
from sparknet.caffe import CaffeNet
from sparknet.caffe.schema import NetParameter

ROOT = REFERENCE
OUTSIDE = np.float32(-3.4028235e38)
"""What Caffe's MAX pooling gives for a window wholly outside the image."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class State:
    """One way to select layers of a case's net, and where its numbers stand."""

    prefix: str
    phase: str
    level: int = 0
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One folder of reference numbers."""

    path: Path
    name: str
    index: dict[str, Any]

    @property
    def inputs(self) -> Arrays:
        return self._arrays("inputs")

    @property
    def forward(self) -> Arrays:
        """Keys `PHASE/BLOB` or `s0/BLOB`."""
        return self._arrays("forward")

    @property
    def backward(self) -> Arrays:
        """Keys `blob/NAME` and `param/LAYER/I`; empty where Caffe ran forward only."""
        return self._arrays("backward")

    @property
    def top_diff(self) -> Arrays:
        return self._arrays("top_diff")

    @property
    def sequence(self) -> Arrays:
        return self._arrays("sequence")

    @property
    def states(self) -> list[State]:
        """Those that `forward` has."""
        if "states" in self.index:
            return [
                State(f"s{at}", state["phase"], state["level"], tuple(state["stages"]))
                for at, state in enumerate(self.index["states"])
            ]
        return [State(phase, phase) for phase in self.index["phases"]]

    @property
    def backward_state(self) -> State:
        if "backward_state" in self.index:
            return self.states[self.index["backward_state"]]
        return State("", self.index["backward_phase"])

    def weights(self, file: str = "weights.caffemodel") -> dict[str, list[np.ndarray]]:
        """Blobs by layer name, from a weight file of the modern layout."""
        message = NetParameter.FromString((self.path / file).read_bytes())
        return {
            layer.name: [
                np.frombuffer(b"".join(blob.data), "<f4").reshape(tuple(blob.shape.dim)) for blob in layer.blobs
            ]
            for layer in message.layer
            if layer.blobs
        }

    def net(self, state: State, dtype: torch.dtype = torch.float64) -> CaffeNet:
        """The case's net in one state, with its weights."""
        net = CaffeNet.from_prototxt(self.path / "net.prototxt", state.phase, state.level, state.stages).to(dtype)
        net.set_weights(self.weights())
        return net

    def _arrays(self, file: str) -> Arrays:
        path = self.path / f"{file}.npz"
        if not path.exists():
            return {}
        with np.load(path) as arrays:
            return dict(arrays)


@cache
def _index() -> list[dict[str, Any]]:
    return json.loads((ROOT / "index.json").read_text())["cases"]


def cases(kind: str) -> list[Case]:
    """All cases of a kind: layers, nets, solvers, fillers or datum."""
    return [Case(ROOT / entry["path"], entry["name"], entry) for entry in _index() if entry["kind"] == kind]


def case(name: str) -> Case:
    """The case of that name."""
    (entry,) = (entry for entry in _index() if entry["name"] == name)
    return Case(ROOT / entry["path"], name, entry)


def distance(mine: Tensor | np.ndarray, caffe: np.ndarray) -> float:
    """max|mine - caffe| / max|caffe|; where Caffe has only zeros: 0 if mine are within 1e-6, else inf."""
    ours = np.asarray(mine.detach() if isinstance(mine, Tensor) else mine, np.float64)
    assert ours.shape == caffe.shape, f"shape {ours.shape}, Caffe's is {caffe.shape}"
    if not caffe.size:
        return 0.0
    scale = float(np.abs(caffe).max())
    worst = float(np.abs(ours - caffe).max())
    if scale == 0:
        return 0.0 if worst <= 1e-6 else np.inf
    return worst / scale


def check_case(case: Case) -> None:
    """Assert all that a layers or nets case tells, in float64."""
    check_forward(case)
    if case.backward:
        check_backward(case)
    if case.sequence:
        check_sequence(case)


def check_forward(case: Case, dtype: torch.dtype = torch.float64) -> None:
    """Assert every blob of every state, and the net's loss."""
    reference, losses = case.forward, case.index.get("total_loss", {})
    tolerance = case.index["tolerance"]["forward"]
    for state in case.states:
        net = case.net(state, dtype)
        expected = _under(state.prefix, reference)
        found = net.forward_blobs(_tensors(case.inputs, dtype), list(expected))
        apart = {name: _distance_of(case, found[name], array) for name, array in expected.items()}
        assert _within(apart, tolerance), f"{case.name} {state.prefix}: {apart}"
        if state.prefix in losses:
            total = net.loss(net(_tensors(case.inputs, dtype))).item()
            assert abs(total / losses[state.prefix] - 1) <= tolerance, f"{case.name}: loss {total}"


def check_backward(case: Case) -> None:
    """Assert the gradients of inputs and parameters."""
    apart = backward_distances(case)
    rule = case.index["tolerance"]
    if rule["rule"] == "median":
        apart = {"the median": float(np.median(list(apart.values())))}
    assert _within(apart, rule["backward"]), f"{case.name} backward: {apart}"


def backward_distances(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, float]:
    """How far each gradient is from Caffe's."""
    reference, net = case.backward, case.net(case.backward_state, dtype)
    inputs, weights = _tensors(case.inputs, dtype), net.weights()
    tensors: dict[str, Tensor] = {}
    for key in reference:
        kind, _, name = key.partition("/")
        layer, _, place = name.rpartition("/")
        # of frozen parameters too: force_backward asks Caffe for every gradient
        tensors[key] = (inputs[name] if kind == "blob" else weights[layer][int(place)]).requires_grad_()
    tops = _tensors(case.top_diff, dtype)
    found = net.forward_blobs(inputs, list(tops))
    given = [name for name in tops if found[name].requires_grad]
    torch.autograd.backward([found[name] for name in given], [tops[name].view_as(found[name]) for name in given])
    return {
        key: distance(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad, reference[key])
        for key, tensor in tensors.items()
    }


def check_sequence(case: Case) -> None:
    """Assert running statistics after each pass in TRAIN, and the TEST pass that follows."""
    reference, tolerance = case.sequence, case.index["tolerance"]["forward"]
    net = case.net(State("", "TRAIN"))
    passes = sorted({key.split("/")[1] for key in reference if key.startswith("input/")}, key=int)
    for number in passes:
        net(_tensors(_under(f"input/{number}", reference), torch.float64))
        for key, expected in _under(f"stat/{number}", reference).items():
            layer, _, place = key.rpartition("/")
            assert distance(net.weights()[layer][int(place)], expected) <= tolerance, (
                f"{case.name}: pass {number}, {key}"
            )
    after = case.net(State("", "TEST"))
    after.set_weights({name: [blob.detach() for blob in blobs] for name, blobs in net.weights().items()})
    expected = _under("test_after", reference)
    found = after.forward_blobs(_tensors(case.inputs, torch.float64), list(expected))
    apart = {name: distance(found[name], array) for name, array in expected.items()}
    assert _within(apart, tolerance), f"{case.name} after: {apart}"


def _distance_of(case: Case, mine: Tensor, caffe: np.ndarray) -> float:
    if not case.index.get("outside_windows"):
        return distance(mine, caffe)
    outside = caffe == OUTSIDE
    ours = mine.detach().numpy()
    assert ours.shape == caffe.shape
    np.testing.assert_array_equal(ours[outside].astype(np.float32), OUTSIDE)
    return distance(ours[~outside], caffe[~outside])


def _within(apart: Mapping[str, float], tolerance: float) -> bool:
    return all(value <= tolerance for value in apart.values())  # false for NaN too


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {key[len(prefix) + 1 :]: array for key, array in arrays.items() if key.startswith(f"{prefix}/")}


def _tensors(arrays: Arrays, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}
