"""Layers over time: LSTM and RNN, unrolled step by step (recurrent_layer.cpp, lstm_layer.cpp, rnn_layer.cpp).

Bottoms are x [time, streams, ...], then `cont` [time, streams], then perhaps a static input [streams, ...], which
is the same at each step, then with `expose_hidden` the states to begin with, each [1, streams, num_output]. Where
`cont` is 0 a stream begins anew: what it was before does not count. Else it is 1; it gets no gradient.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparknet.caffe.layers.fillers import new_blob
from sparknet.caffe.layers.layer import Layer, Shape
from sparknet.caffe.schema import LayerParameter
from sparknet.caffe.schema.net_format_pb2 import RecurrentParameter
from sparknet.errors import NetError

__all__ = ["LSTM", "RNN"]


class _Recurrent(Layer):
    """What both share: bottoms and tops, and what is carried from one pass to the next."""

    needs_output = False
    is_over_time = True
    onnx_refusal = (
        "it is unrolled over its first axis, time, which an ONNX file leaves free, and goes on in each pass where "
        "the last one ended"
    )
    state_names: ClassVar[tuple[str, ...]]
    """What is carried from step to step, as Caffe names it."""
    gates: ClassVar[int]
    """Rows of the matrices for each output."""

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.recurrent_param
        if given.num_output < 1:
            raise NetError(
                f"num_output is {given.num_output}; it must be at least 1: set recurrent_param.num_output"
            )
        self.num_output, self.is_exposed = given.num_output, given.expose_hidden
        hidden = len(self.state_names) if self.is_exposed else 0
        self._check_counts(len(bottoms), len(parameters.top), hidden)
        self.is_static = len(bottoms) > 2 + hidden
        self._check_shapes(bottoms)
        self._make_blobs(given, bottoms)
        # No buffer: workers average those, and a state is of the rows that its worker saw.
        self._carried: tuple[Tensor, ...] | None = None

    def reset(self) -> None:
        """Begin the next pass from zeros."""
        self._carried = None

    def forward(self, x: Tensor, cont: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        """[time, streams, ...] and [time, streams] to [time, streams, num_output]; states with `expose_hidden`."""
        self._check_shapes([tuple(bottom.shape) for bottom in (x, cont, *others)])
        static, given = (others[0], others[1:]) if self.is_static else (None, others)
        steps = self._inputs(x, static).unbind(0)
        keeps = cont.detach().unsqueeze(-1).unbind(0)
        # recurrent_layer.cpp shares the data of exposed states but not their gradients: none passes on either side.
        state = tuple(one.detach().squeeze(0) for one in given) if self.is_exposed else self._begin(x)
        hidden: list[Tensor] = []
        for step, keep in zip(steps, keeps, strict=True):
            state = self._step(step, keep, state)
            hidden.append(state[0])
        top = self._output(torch.stack(hidden))
        if self.is_exposed:
            # copies, since a layer in place may overwrite a top, and these are needed for the gradient
            return top, *(one.detach().unsqueeze(0).clone() for one in state)
        self._carry(state)
        return top

    def _step(self, inputs: Tensor, keep: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The next state, h first.

        Args:
            inputs: of this step, multiplied by their weights, [streams, gates * num_output].
            keep: `cont` of this step, [streams, 1].
            state: of the step before, each [streams, num_output].
        """
        raise NotImplementedError

    def _output(self, hidden: Tensor) -> Tensor:
        """The top, from h of all steps."""
        return hidden

    def _inputs(self, x: Tensor, static: Tensor | None) -> Tensor:
        """All steps at once, as Caffe does: [time, streams, gates * num_output]."""
        steps = functional.linear(x.flatten(2), self.weight_x, self.bias)
        return steps if static is None else steps + functional.linear(static.flatten(1), self.weight_static)

    def _begin(self, x: Tensor) -> tuple[Tensor, ...]:
        """Where the last pass ended; zeros before the first one, and where the number of streams is another."""
        shape = (x.shape[1], self.num_output)
        if self._carried is None or self._carried[0].shape != shape:
            return tuple(x.new_zeros(shape) for _ in self.state_names)
        return tuple(one.to(x) for one in self._carried)

    def _carry(self, state: tuple[Tensor, ...]) -> None:
        if state[0].is_meta:  # a pass that only finds shapes
            return
        # Of a pass in inference mode too a copy that training may go on from.
        with torch.inference_mode(False):
            self._carried = tuple(one.detach().clone() for one in state)

    def _make_blobs(self, given: RecurrentParameter, bottoms: Sequence[Shape]) -> None:
        # In the order in which the layers of the unrolled net first have them.
        rows = self.gates * self.num_output
        self.weight_x = nn.Parameter(new_blob((rows, math.prod(bottoms[0][2:])), given.weight_filler))
        self.bias = nn.Parameter(new_blob((rows,), given.bias_filler))
        if self.is_static:
            self.weight_static = nn.Parameter(new_blob((rows, math.prod(bottoms[2][1:])), given.weight_filler))
        self.weight_h = nn.Parameter(new_blob((rows, self.num_output), given.weight_filler))
        self.blob_names = ("weight_x", "bias", *(["weight_static"] if self.is_static else []), "weight_h")

    def _check_counts(self, bottoms: int, tops: int, hidden: int) -> None:
        said = "with" if hidden else "without"
        names = "".join(f", {name}_0" for name in self.state_names) if hidden else ""
        if bottoms - hidden not in (2, 3):
            raise NetError(
                f"it has {bottoms} bottoms; {said} expose_hidden it reads x, cont, perhaps a static input{names}: "
                f"{2 + hidden} or {3 + hidden}"
            )
        if tops != 1 + hidden:
            raise NetError(f"it has {tops} tops; {said} expose_hidden it makes {1 + hidden}")

    def _check_shapes(self, bottoms: Sequence[Shape]) -> None:
        x, cont, *others = bottoms
        if len(x) < 3:
            raise NetError(
                f"x has shape {x}; expected at least three axes, [time, streams, ...]: add one of size 1"
            )
        if cont != x[:2]:
            raise NetError(
                f"cont has shape {cont}; x of shape {x} needs a number for each step and stream, {x[:2]}"
            )
        if self.is_static and (len(others[0]) < 2 or others[0][0] != x[1]):
            raise NetError(f"the static input has shape {others[0]}; expected a row for each stream, ({x[1]}, ...)")
        expected = (1, x[1], self.num_output)
        for name, state in zip(self.state_names, others[self.is_static :], strict=False):
            if state != expected:
                raise NetError(f"{name}_0 has shape {state}; expected (1, streams, num_output), {expected}")

    def multiply_adds(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        """Every matrix at each step of each stream, that of the static input once for each stream."""
        steps, streams = bottoms[0][:2]
        sizes = {name: getattr(self, name).numel() for name in self.blob_names if name.startswith("weight")}
        once = sizes.pop("weight_static", 0)
        return streams * (steps * sum(sizes.values()) + once)


class LSTM(_Recurrent):
    """c = σ(f) c' + σ(i) tanh(g), h = σ(o) tanh(c); i, f, o, g = W_x x + b (+ W_static s) + W_h h'; tops h.

    Blobs: W_x [4 num_output, features], b [4 num_output], perhaps W_static [4 num_output, features], W_h
    [4 num_output, num_output], each with the rows of i, f, o, g in this order.
    """

    bottom_count = (2, 5)
    top_count = (1, 3)
    state_names = ("h", "c")
    gates = 4

    def _step(self, inputs: Tensor, keep: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        i, f, o, g = (inputs + functional.linear(keep * h, self.weight_h)).chunk(4, -1)
        c = keep * (f.sigmoid() * c) + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class RNN(_Recurrent):
    """h = tanh(W_x x + b (+ W_static s) + W_h h'); tops o = tanh(W_o h + b_o).

    Blobs: W_x [num_output, features], b [num_output], perhaps W_static [num_output, features], W_h and W_o
    [num_output, num_output], b_o [num_output].
    """

    bottom_count = (2, 4)
    top_count = (1, 2)
    state_names = ("h",)
    gates = 1

    def _make_blobs(self, given: RecurrentParameter, bottoms: Sequence[Shape]) -> None:
        super()._make_blobs(given, bottoms)
        self.weight_out = nn.Parameter(new_blob((self.num_output, self.num_output), given.weight_filler))
        self.bias_out = nn.Parameter(new_blob((self.num_output,), given.bias_filler))
        self.blob_names = (*self.blob_names, "weight_out", "bias_out")

    def _step(self, inputs: Tensor, keep: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ((inputs + functional.linear(keep * state[0], self.weight_h)).tanh(),)

    def _output(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weight_out, self.bias_out).tanh()
