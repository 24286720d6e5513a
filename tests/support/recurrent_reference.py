"""Numbers for LSTM and RNN layers by loops over steps, streams and outputs in numpy, gradients by hand, in float64.

They are what `tests/caffe/layers/recurrent.npz` holds; it is written anew by

    python tests/support/recurrent_reference.py

Nothing of the library is used. The equations are those in the comments of Caffe's lstm_layer.cpp and rnn_layer.cpp.
Keys are `CASE/x`, `CASE/cont`, `CASE/static`, `CASE/begin/K`; `CASE/blob/I` in Caffe's order; for pass P
`CASE/P/top/K`; and of the last pass, for `CASE/top_diff`: `CASE/diff/x`, `CASE/diff/static`, `CASE/diff/blob/I`.
Where states are not exposed, there are two passes over the same bottoms; the second goes on where the first ended.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).parents[1] / "caffe" / "layers" / "recurrent.npz"
CASES = {
    f"{kind}{'_static' if static else ''}{'_exposed' if exposed else ''}": (kind, static, exposed)
    for kind in ("lstm", "rnn")
    for static in (False, True)
    for exposed in (False, True)
}
STEPS, STREAMS, FEATURES, STATIC, OUTPUTS = 5, 3, 4, 2, 3

Arrays = dict[str, np.ndarray]


def sigmoid(number: float) -> float:
    """The logistic function."""
    return 1 / (1 + np.exp(-number))


class Lstm:
    """One stream of an LSTM: forward keeps what backward needs."""

    gates = 4

    def __init__(self, blobs: list[np.ndarray], static: np.ndarray | None) -> None:
        # Rows of the gates one after the other: i, f, o, g.
        self.w, self.b, self.v = blobs[0], blobs[1], blobs[-1]
        self.s = None if static is None else blobs[2]
        self.static = static
        self.tape: list[tuple] = []

    def step(self, x: np.ndarray, cont: float, state: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        h, c = state
        before = h * cont
        made_h, made_c, gates = np.zeros(OUTPUTS), np.zeros(OUTPUTS), np.zeros((4, OUTPUTS))
        for out in range(OUTPUTS):
            for gate in range(4):
                row = gate * OUTPUTS + out
                total = self.b[row] + self.w[row] @ x + self.v[row] @ before
                if self.s is not None:
                    total += self.s[row] @ self.static
                gates[gate, out] = np.tanh(total) if gate == 3 else sigmoid(total)
            made_c[out] = cont * gates[1, out] * c[out] + gates[0, out] * gates[3, out]
            made_h[out] = gates[2, out] * np.tanh(made_c[out])
        self.tape.append((x, cont, before, c, gates, made_c))
        return [made_h, made_c], made_h

    def back(self, diffs: np.ndarray, sums: Arrays) -> list[np.ndarray]:
        """Gradients of each step's x, from those of each step's top; adds those of the blobs to `sums`."""
        to_h, to_c, to_x = np.zeros(OUTPUTS), np.zeros(OUTPUTS), []
        for step in reversed(range(len(self.tape))):
            x, cont, before, c, (i, f, o, g), made_c = self.tape[step]
            to_h = to_h + diffs[step]
            squashed = np.tanh(made_c)
            to_c = to_c + to_h * o * (1 - squashed**2)
            to_gates = np.concatenate(
                [
                    to_c * g * i * (1 - i),
                    to_c * cont * c * f * (1 - f),
                    to_h * squashed * o * (1 - o),
                    to_c * i * (1 - g**2),
                ]
            )
            to_x.insert(0, _take(self, to_gates, x, before, sums))
            to_c = to_c * f * cont
            to_h = cont * (self.v.T @ to_gates)
        return to_x


class Rnn:
    """One stream of an RNN."""

    gates = 1

    def __init__(self, blobs: list[np.ndarray], static: np.ndarray | None) -> None:
        self.w, self.b, self.v, self.out, self.out_b = blobs[0], blobs[1], *blobs[-3:]
        self.s = None if static is None else blobs[2]
        self.static = static
        self.tape: list[tuple] = []

    def step(self, x: np.ndarray, cont: float, state: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        before = state[0] * cont
        made, top = np.zeros(OUTPUTS), np.zeros(OUTPUTS)
        for out in range(OUTPUTS):
            total = self.b[out] + self.w[out] @ x + self.v[out] @ before
            if self.s is not None:
                total += self.s[out] @ self.static
            made[out] = np.tanh(total)
        for out in range(OUTPUTS):
            top[out] = np.tanh(self.out[out] @ made + self.out_b[out])
        self.tape.append((x, cont, before, made, top))
        return [made], top

    def back(self, diffs: np.ndarray, sums: Arrays) -> list[np.ndarray]:
        to_h, to_x = np.zeros(OUTPUTS), []
        for step in reversed(range(len(self.tape))):
            x, cont, before, made, top = self.tape[step]
            to_out = diffs[step] * (1 - top**2)
            sums["out"] += np.outer(to_out, made)
            sums["out_b"] += to_out
            to_h = to_h + self.out.T @ to_out
            to_sum = to_h * (1 - made**2)
            to_x.insert(0, _take(self, to_sum, x, before, sums))
            to_h = cont * (self.v.T @ to_sum)
        return to_x


def _take(stream: Lstm | Rnn, to_sum: np.ndarray, x: np.ndarray, before: np.ndarray, sums: Arrays) -> np.ndarray:
    sums["w"] += np.outer(to_sum, x)
    sums["b"] += to_sum
    sums["v"] += np.outer(to_sum, before)
    if stream.s is not None:
        sums["s"] += np.outer(to_sum, stream.static)
        sums["to_static"] += stream.s.T @ to_sum
    return stream.w.T @ to_sum


def case(name: str, random: np.random.Generator) -> Arrays:
    """All arrays of one case, without its name."""
    kind, has_static, is_exposed = CASES[name]
    states = 2 if kind == "lstm" else 1
    cell = Lstm if kind == "lstm" else Rnn
    rows = cell.gates * OUTPUTS
    shapes = [(rows, FEATURES), (rows,), *([(rows, STATIC)] if has_static else []), (rows, OUTPUTS)]
    if kind == "rnn":
        shapes += [(OUTPUTS, OUTPUTS), (OUTPUTS,)]
    blobs = [random.normal(0, 0.8, shape) for shape in shapes]
    found: Arrays = {
        # two axes of features, which become one
        "x": random.normal(size=(STEPS, STREAMS, 2, FEATURES // 2)),
        # the first stream goes on from before, the second begins at the first step, the third in the middle
        "cont": np.array([[1, 0, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1]], float),
        "top_diff": random.normal(size=(STEPS, STREAMS, OUTPUTS)),
    }
    found |= {f"blob/{at}": blob for at, blob in enumerate(blobs)}
    if has_static:
        found["static"] = random.normal(size=(STREAMS, STATIC))
    begin = np.zeros((states, STREAMS, OUTPUTS))
    if is_exposed:
        begin = random.normal(size=begin.shape)
        found |= {f"begin/{at}": state[None] for at, state in enumerate(begin)}
    for number in range(1 if is_exposed else 2):
        begin, streams, tops = forward(cell, blobs, found, begin)
        found[f"{number}/top/0"] = tops
        if is_exposed:
            found |= {f"{number}/top/{at + 1}": state[None] for at, state in enumerate(begin)}
    return found | backward(streams, blobs, found)


def forward(cell, blobs, given: Arrays, begin: np.ndarray):
    """The states at the end, the streams with what they kept, and the top."""
    x, tops, ends, streams = given["x"].reshape(STEPS, STREAMS, FEATURES), [], [], []
    for place in range(STREAMS):
        stream = cell(blobs, given["static"][place] if "static" in given else None)
        state, column = [one[place] for one in begin], []
        for step in range(STEPS):
            state, top = stream.step(x[step, place], given["cont"][step, place], state)
            column.append(top)
        streams.append(stream)
        tops.append(column)
        ends.append(state)
    return np.swapaxes(np.array(ends), 0, 1), streams, np.swapaxes(np.array(tops), 0, 1)


def backward(streams, blobs, given: Arrays) -> Arrays:
    """Gradients of x, the static input and the blobs."""
    names = ["w", "b", *(["s"] if "static" in given else []), "v", "out", "out_b"][: len(blobs)]
    sums = {name: np.zeros_like(blob) for name, blob in zip(names, blobs, strict=True)}
    to_x, to_static = [], []
    for place, stream in enumerate(streams):
        sums["to_static"] = np.zeros(STATIC)
        to_x.append(stream.back(given["top_diff"][:, place], sums))
        to_static.append(sums.pop("to_static"))
    found = {"diff/x": np.swapaxes(np.array(to_x), 0, 1).reshape(given["x"].shape)}
    if "static" in given:
        found["diff/static"] = np.array(to_static)
    return found | {f"diff/blob/{at}": sums[name] for at, name in enumerate(names)}


def reference() -> Arrays:
    """All cases."""
    random = np.random.default_rng(7)
    return {f"{name}/{key}": array for name in CASES for key, array in case(name, random).items()}


if __name__ == "__main__":
    np.savez_compressed(FILE, **reference())
