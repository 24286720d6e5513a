"""Caffe's six updates as a torch optimiser (sgd_solver.cpp and its neighbours)."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, cast, overload

import torch
from torch import Tensor

from sparknet.caffe.solver.rules import SolverType
from sparknet.caffe.solver.update_rule import UpdateRule
from sparknet.errors import CheckpointError

__all__ = ["CaffeOptimizer", "Multiplied", "UpdateRule", "parameter_groups"]

_PIECE = 1 << 16
"""Numbers worked on at once on a CPU: 256 KiB of float32 for each of weight, gradient and histories."""


class Multiplied(Protocol):
    """A tensor with Caffe's multipliers, as a net's `learnable` lists them."""

    @property
    def tensor(self) -> Tensor: ...  # noqa: D102
    @property
    def lr_mult(self) -> float: ...  # noqa: D102
    @property
    def decay_mult(self) -> float: ...  # noqa: D102


def parameter_groups(learnable: Iterable[Multiplied]) -> list[dict[str, Any]]:
    """Torch's parameter groups for these tensors, one group per pair of multipliers."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for blob in learnable:
        groups.setdefault((blob.lr_mult, blob.decay_mult), []).append(blob.tensor)
    return [
        {"params": tensors, "lr_mult": lr_mult, "decay_mult": decay_mult}
        for (lr_mult, decay_mult), tensors in groups.items()
    ]


class CaffeOptimizer(torch.optim.Optimizer):
    """Caffe's update of any tensors from their gradients.

    A step clips the gradients (all together, before decay), divides them by iter_size, adds the decay
    λ decay_mult W (L1: sign W) and, with a = lr lr_mult, takes u from W (g is the gradient by then):

    - SGD: V = μ V + a g, u = V. Unlike torch's SGD the history holds the rate.
    - Nesterov (Sutskever et al. 2013): V' = μ V + a g, u = (1 + μ) V' - μ V.
    - AdaGrad (Duchi et al. 2011): H += g², u = a g / (√H + δ).
    - RMSProp (Tieleman and Hinton 2012): H = ρ H + (1-ρ) g², u = a g / (√H + δ).
    - AdaDelta (Zeiler, arXiv 1212.5701): H = μ H + (1-μ) g², d = g √((D + δ) / (H + δ)),
      D = μ D + (1-μ) d², u = a d.
    - Adam (Kingma and Ba, arXiv 1412.6980): m = β1 m + (1-β1) g, v = β2 v + (1-β2) g²,
      u = a √(1-β2^t) / (1-β1^t) m / (√v + δ), t counted from 1.

    As in Caffe every tensor takes part in every step: one without a gradient has gradient 0, and its history moves
    on. With lr_mult 0 a tensor stays where it is; a gradient that it has all the same, as in a net with
    force_backward, counts in the norm that is clipped and in its history. `.grad` is the workspace: after a step it
    is no longer the gradient.

    The state of a tensor is `history` (and `history2`) of its shape and dtype, and Adam's `iteration`, a number.

    Args:
        params: tensors or torch's groups of them; a group may give `lr`, `lr_mult` (1.0) and `decay_mult` (1.0).
            Tensors that no gradient reaches, such as BatchNorm's buffers, may be among them.
        lr: rate of the groups that give none.
        rule: the constants.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], *, lr: float, rule: UpdateRule | None = None
    ) -> None:
        self.rule = rule or UpdateRule()
        super().__init__(params, {"lr": lr, "lr_mult": 1.0, "decay_mult": 1.0})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every tensor from the gradient in its `.grad`, the sum over iter_size batches."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [group for group in self.param_groups if group["params"]]
        gradients = [_gradients(group) for group in groups]
        # Over all groups before any is updated: the norm is of the whole gradient, without decay (ClipGradients).
        self._clip([gradient for group in gradients for gradient in group])
        for group, found in zip(groups, gradients, strict=True):
            self._update(group, found)
        return loss

    def histories(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The histories of these tensors, live: all first ones, then all second ones; at first zeros."""
        return [self._state_of(tensor)[key] for key in self.rule.histories for tensor in tensors]

    def check_histories(self, tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
        """See that histories of these shapes are what `histories` gives for these tensors.

        Raises:
            CheckpointError: their number or a shape is another.
        """
        # Caffe's order: every parameter's first history, then every parameter's second one.
        own = [tuple(tensor.shape) for _ in self.rule.histories for tensor in tensors]
        if len(shapes) != len(own):
            raise CheckpointError(
                f"the history has {len(shapes)} blobs; type {self.rule.type} over {len(tensors)} parameters has "
                f"{len(own)}: restore what this type of solver saved for this net"
            )
        for place, (mine, given) in enumerate(zip(own, shapes, strict=True)):
            if _bare(mine) != _bare(given):
                raise CheckpointError(
                    f"history blob {place} has shape {given}; the net's parameter has {mine}: restore what was "
                    "saved for this net"
                )

    def load_histories(self, tensors: Sequence[Tensor], histories: Sequence[Tensor], iteration: int) -> None:
        """Take over what `histories` gave for the same tensors after so many iterations.

        Raises:
            CheckpointError: their number or a shape is another.
        """
        self.check_histories(tensors, [tuple(given.shape) for given in histories])
        for mine, given in zip(self.histories(tensors), histories, strict=True):
            mine.copy_(given.reshape(mine.shape))
        if self.rule.type == "Adam":
            for tensor in tensors:
                self.state[tensor]["iteration"] = iteration

    def _state_of(self, tensor: Tensor) -> dict[str, Any]:
        state = cast("dict[str, Any]", self.state[tensor])
        if not state:
            for key in self.rule.histories:
                # In the weight's memory order, so that both are cut into the same flat pieces.
                state[key] = torch.zeros_like(tensor, memory_format=torch.preserve_format).detach()
            if self.rule.type == "Adam":
                state["iteration"] = 0
        return state

    def _clip(self, gradients: list[Tensor]) -> None:
        """Scale all gradients to the norm clip_gradients if theirs, undivided by iter_size, is more."""
        limit = self.rule.clip_gradients
        if limit < 0 or not gradients:
            return
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        # Stacked, so that a GPU is waited for once.
        norm = float(torch.linalg.vector_norm(torch.stack([part.to(norms[0]) for part in norms])))
        if norm > limit:
            for gradient in gradients:
                gradient.mul_(limit / norm)

    def _update(self, group: dict[str, Any], gradients: list[Tensor]) -> None:
        """Divide by iter_size, add the decay, and update, piece by piece."""
        rule, update = self.rule, _UPDATES[self.rule.type]
        decay: float = rule.weight_decay * group["decay_mult"]
        for tensor, whole in zip(cast("list[Tensor]", group["params"]), gradients, strict=True):
            state = self._state_of(tensor)
            rate: float = group["lr"] * group["lr_mult"]
            if rule.type == "Adam":
                # Into the rate: one number a tensor, where corrected averages would be two more passes over it.
                state["iteration"] += 1
                rate *= _adam_correction(rule, state["iteration"])
            # All operations on one piece before the next: a whole tensor would leave the cache between any two.
            for weight, gradient, *histories in _pieces([tensor, whole, *(state[key] for key in rule.histories)]):
                # In Caffe's order, Normalize and then Regularize: the decay is not divided by iter_size.
                if rule.iter_size > 1:
                    gradient.mul_(1 / rule.iter_size)
                if decay:
                    gradient.add_(weight if rule.regularization_type == "L2" else weight.sign(), alpha=decay)
                update(weight, gradient, histories, rate, rule)


def _gradients(group: dict[str, Any]) -> list[Tensor]:
    """The gradients to work in; zeros for tensors that have none."""
    return [
        (torch.zeros_like(tensor) if tensor.grad is None else tensor.grad).detach()
        for tensor in cast("list[Tensor]", group["params"])
    ]


def _pieces(tensors: list[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Large tensors on a CPU as flat pieces, so that what one operation writes the next finds in the cache."""
    if tensors[0].device.type == "cpu" and all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(tensor.view(-1).split(_PIECE) for tensor in tensors), strict=True)
    else:
        yield tensors


def _sgd(weight: Tensor, gradient: Tensor, histories: list[Tensor], rate: float, rule: UpdateRule) -> None:
    (history,) = histories
    # The rate goes into the history: when it falls, steps made before keep the larger one.
    history.mul_(rule.momentum).add_(gradient, alpha=rate)
    weight.sub_(history)


def _nesterov(weight: Tensor, gradient: Tensor, histories: list[Tensor], rate: float, rule: UpdateRule) -> None:
    (history,) = histories
    gradient.mul_(rate)
    history.mul_(rule.momentum).add_(gradient)
    # (1 + μ) V' - μ V = μ V' + a g: no copy of V is needed.
    weight.sub_(gradient.add_(history, alpha=rule.momentum))


def _adagrad(weight: Tensor, gradient: Tensor, histories: list[Tensor], rate: float, rule: UpdateRule) -> None:
    (history,) = histories
    history.addcmul_(gradient, gradient)
    weight.addcdiv_(gradient, history.sqrt().add_(rule.delta), value=-rate)


def _rmsprop(weight: Tensor, gradient: Tensor, histories: list[Tensor], rate: float, rule: UpdateRule) -> None:
    (history,) = histories
    history.mul_(rule.rms_decay).addcmul_(gradient, gradient, value=1 - rule.rms_decay)
    weight.addcdiv_(gradient, history.sqrt().add_(rule.delta), value=-rate)


def _adadelta(weight: Tensor, gradient: Tensor, histories: list[Tensor], rate: float, rule: UpdateRule) -> None:
    squares, steps = histories
    squares.mul_(rule.momentum).addcmul_(gradient, gradient, value=1 - rule.momentum)
    # By the mean square of the steps so far: this step joins it only afterwards.
    gradient.mul_(steps.add(rule.delta).div_(squares.add(rule.delta)).sqrt_())
    steps.mul_(rule.momentum).addcmul_(gradient, gradient, value=1 - rule.momentum)
    weight.sub_(gradient, alpha=rate)


def _adam(weight: Tensor, gradient: Tensor, histories: list[Tensor], rate: float, rule: UpdateRule) -> None:
    mean, square = histories
    mean.mul_(rule.momentum).add_(gradient, alpha=1 - rule.momentum)
    square.mul_(rule.momentum2).addcmul_(gradient, gradient, value=1 - rule.momentum2)
    weight.addcdiv_(mean, square.sqrt().add_(rule.delta), value=-rate)


def _adam_correction(rule: UpdateRule, iteration: int) -> float:
    return math.sqrt(1 - rule.momentum2**iteration) / (1 - rule.momentum**iteration)


_Update = Callable[[Tensor, Tensor, list[Tensor], float, UpdateRule], None]

_UPDATES: dict[SolverType, _Update] = {
    "SGD": _sgd,
    "Nesterov": _nesterov,
    "AdaGrad": _adagrad,
    "RMSProp": _rmsprop,
    "AdaDelta": _adadelta,
    "Adam": _adam,
}


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without leading ones, which Caffe's older files add."""
    first = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]
