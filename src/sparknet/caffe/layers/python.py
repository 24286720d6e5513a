"""Layers whose code is a Python class beside the net's file (python_layer.hpp)."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparknet.caffe.layers.layer import Layer, Shape
from sparknet.caffe.layers.user_code import call, find_layer
from sparknet.caffe.pycaffe.blob import Array, Blob, Blobs
from sparknet.caffe.pycaffe.layer import TEST, TRAIN
from sparknet.caffe.pycaffe.layer import Layer as UserLayer
from sparknet.caffe.pycaffe.place import drawing_alone
from sparknet.caffe.schema import LayerParameter
from sparknet.errors import NetError

__all__ = ["Python"]


class Python(Layer):
    """What a class of the user's computes, in numpy on the CPU; it is code, and runs only where that is allowed.

    As in Caffe `setup` runs once, `reshape` before each pass, and `backward` is asked for the bottoms that need a
    gradient. Without bottoms it makes its tops itself: a data layer.

    Args:
        parameters: the layer's description.
        bottoms: shapes of the bottoms.
        training: whether the layer's phase is TRAIN.
        path: directories in which its module is looked for.
    """

    # `needs_output` stays true: `backward` may look at the tops.
    bottom_count = (0, None)
    top_count = (0, None)
    like: Tensor

    def __init__(
        self,
        parameters: LayerParameter,
        bottoms: Sequence[Shape],
        *,
        training: bool = False,
        path: Sequence[str] = (),
    ) -> None:
        super().__init__(parameters, bottoms)
        self._called, self._weights = parameters.name, tuple(parameters.loss_weight)
        kind = find_layer(parameters, path)
        bottom, top = _blobs(parameters, bottoms)
        self._bottom, self._top = bottom, top
        self._in_place = {id(blob) for blob in bottom if any(blob is other for other in top)}
        self._passes = 0
        # A compiled net runs it as it is: a compiler would look once at what it does, and take that for all.
        self._run: Any = torch.compiler.disable(_Pass.apply)
        # Tells dtype and device where there are neither bottoms nor blobs.
        self.register_buffer("like", torch.empty(0), persistent=False)
        try:
            self._code = kind(parameters)
        except Exception as error:  # its `__init__` is the user's too
            raise NetError(f"class {kind.__name__} cannot be made: {type(error).__name__}: {error}") from error
        self._code.param_str = parameters.python_param.param_str
        self._code.phase = TRAIN if training else TEST
        self._code.blobs = Blobs()
        # What is learned must begin alike in all replicas, and what is read must not be the same in all.
        with nullcontext() if bottom else drawing_alone():
            call(self._code, "setup", bottom, top)
            call(self._code, "reshape", bottom, top)
        self._top_shapes = tuple(blob.shape for blob in top)
        self.blob_names = tuple(f"blob{place}" for place in range(len(self._code.blobs)))
        for name, blob in zip(self.blob_names, self._code.blobs, strict=True):
            setattr(self, name, nn.Parameter(torch.from_numpy(blob.data.copy())))

    @property
    def code(self) -> UserLayer:
        """The user's own object, as pycaffe's `net.layers[i]` gives it, for what is told to it from outside."""
        return self._code

    def top_shapes(self) -> tuple[Shape, ...] | None:
        """As the first `reshape` has made them."""
        return self._top_shapes

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        """One tensor for each top."""
        return self._run(self, *bottoms, *self.blobs())

    def run_forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tops for bottoms and, behind them, blobs, without a gradient."""
        self._passes += 1
        bottoms, learned = tensors[: len(self._bottom)], tensors[len(self._bottom) :]
        dtype = torch.float64 if self.like.dtype == torch.float64 else torch.float32
        for blob, tensor in zip(self._bottom, bottoms, strict=True):
            array = _array(tensor, dtype)
            if id(blob) in self._in_place:
                array = array.copy()
            else:
                # It is the net's own memory, in which autograd would not see a change.
                array.setflags(write=False)
            blob.bind(array)
        for blob in self._top:
            blob.as_type(_NUMPY[dtype])
        before = [self._show(blob, tensor, dtype) for blob, tensor in zip(self._code.blobs, learned, strict=True)]
        call(self._code, "reshape", self._bottom, self._top)
        call(self._code, "forward", self._bottom, self._top)
        for blob, tensor, array in zip(self._code.blobs, learned, before, strict=True):
            # A layer may keep statistics in its blobs; a copy on a device learns of it here.
            if array is not None and not np.array_equal(array, blob.data):
                tensor.copy_(torch.from_numpy(blob.data))
        device = bottoms[0].device if bottoms else self.like.device
        # Copies: the layer writes into the same memory at its next pass.
        return tuple(torch.from_numpy(blob.data.copy()).to(device) for blob in self._top)

    def run_backward(self, number: int, gradients: Sequence[Tensor], needed: Sequence[bool]) -> list[Array | None]:
        """Gradients of bottoms and blobs, where they are needed, for those of the tops.

        Raises:
            NetError: the layer has run again since that pass, or its code fails.
        """
        where = f"layer {self._called!r} (Python)"
        if number != self._passes:
            raise NetError(
                f"{where}: the gradient of pass {number} is wanted after pass {self._passes}; such a layer knows "
                "its last pass alone: take the gradient before the net runs again"
            )
        scale = self._loss_scale(gradients)
        for blob, gradient in zip(self._top, gradients, strict=True):
            blob.diff[...] = _array(gradient / scale, torch.float64)
        learned = self._code.blobs
        # The solver clears them in Caffe, and layers add to them.
        for blob in learned:
            blob.diff[...] = 0
        down = list(needed[: len(self._bottom)])
        try:
            call(self._code, "backward", self._top, down, self._bottom)
        except NetError as error:
            raise NetError(f"{where}: {error}") from error
        return [
            blob.diff * blob.diff.dtype.type(scale) if wanted else None
            for blob, wanted in zip([*self._bottom, *learned], needed, strict=True)
        ]

    @property
    def passes(self) -> int:
        """Forward passes so far."""
        return self._passes

    def _show(self, blob: Blob, tensor: Tensor, dtype: torch.dtype) -> Array | None:
        """Show a learned tensor to the layer; a copy of what it is, where the layer cannot write to it itself."""
        array = _array(tensor, dtype)
        blob.bind(array)
        shared = tensor.device.type == "cpu" and array.ctypes.data == tensor.data_ptr()
        return None if shared else array.copy()

    def _loss_scale(self, gradients: Sequence[Tensor]) -> float:
        """By how much more than its loss_weight the loss counts: what fp16 and accumulated steps multiply it by.

        Published losses do not look at their top's gradient, which in Caffe is the loss_weight and nothing else.
        """
        found = {
            float(gradient.flatten()[0]) / weight
            for gradient, weight in zip(gradients, self._weights, strict=False)
            if weight and gradient.numel() and bool((gradient == gradient.flatten()[0]).all())
        }
        scale = found.pop() if len(found) == 1 else 1.0
        return scale if np.isfinite(scale) and scale else 1.0


class _Pass(torch.autograd.Function):
    """One pass through the user's code."""

    @staticmethod
    def forward(ctx: Any, layer: Python, *tensors: Tensor) -> tuple[Tensor, ...]:
        tops = layer.run_forward(tensors)
        ctx.layer, ctx.number = layer, layer.passes
        ctx.like = [(tensor.device, tensor.dtype) for tensor in tensors]
        return tops

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():  # there is no second derivative
            found = ctx.layer.run_backward(ctx.number, grad_outputs, ctx.needs_input_grad[1:])
            return None, *(
                None if array is None else torch.from_numpy(array).to(device, dtype)
                for array, (device, dtype) in zip(found, ctx.like, strict=True)
            )


_NUMPY = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


def _blobs(parameters: LayerParameter, shapes: Sequence[Shape]) -> tuple[tuple[Blob, ...], tuple[Blob, ...]]:
    """Bottoms and tops; in place, with the same name at the same position, they are one."""
    bottom = tuple(Blob(tuple(shape)) for shape in shapes)
    names = list(parameters.bottom)
    top = tuple(
        bottom[place] if names[place : place + 1] == [name] else Blob() for place, name in enumerate(parameters.top)
    )
    return bottom, top


def _array(tensor: Tensor, dtype: torch.dtype) -> Array:
    """A tensor's numbers on the CPU, in C order; a view where they lie so already."""
    return tensor.detach().to("cpu", dtype).contiguous().numpy()
