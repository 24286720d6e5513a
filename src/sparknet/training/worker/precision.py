"""In which numbers a step is computed: autocast for forward and backward, float32 for weights and their updates."""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Precision"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_SCALE = 2.0**-24
"""Below it what still overflows is not the scale's doing: the loss is next to nothing."""


class Precision:
    """Forward pass, backward pass and step of a replica in a precision.

    With fp16 the loss is multiplied by a scale, so that small gradients do not vanish; a step whose gradients
    overflow is left out, and the scale halved (Micikevicius et al., arXiv 1710.03740, section 3.2). Such a step
    counts: schedules and rounds go by the steps tried.

    Args:
        precision: as `solver.precision`.
        device: of the weights.
    """

    def __init__(self, precision: Literal["fp32", "bf16", "fp16"], device: torch.device) -> None:
        self._device = device
        self._dtype = _DTYPES.get(precision)
        self._scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None

    def forward(self) -> contextlib.AbstractContextManager[object]:
        """The context of a forward pass and its loss."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def step(self, optimizer: torch.optim.Optimizer, *, clip_norm: float | None) -> None:
        """Clip the gradients and step the weights."""
        if self._scaler is not None:
            # Clipping is of the gradients as they are.
            self._scaler.unscale_(optimizer)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(_tensors(optimizer), clip_norm)
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()

    def counted(self, losses: Tensor) -> Tensor:
        """Those losses that count, of float32 [batches]: with fp16 not what overflowed, whose step was left out."""
        return losses if self._scaler is None else losses[torch.isfinite(losses)]

    @property
    def overflow(self) -> str:
        """Why fp16 can train no step any more; empty: it can."""
        scale = 1.0 if self._scaler is None else self._scaler.get_scale()
        if scale >= _LEAST_SCALE:
            return ""
        return (
            f"the gradients overflow in fp16 at a loss scale of {scale:g}; they must stay below 65504: set "
            "solver.precision to 'bf16' or 'fp32'"
        )

    def state(self) -> dict[str, float]:
        """Scale and steps since it last changed, which going on exactly takes; nothing without fp16."""
        if self._scaler is None:
            return {}
        # A scaler that has not scaled anything yet has its scale in no tensor.
        state = self._scaler.state_dict()
        return {key: float(state[key]) for key in ("scale", "_growth_tracker")}

    def load(self, state: Mapping[str, float]) -> None:
        """Take what `state` gave; where nothing is given, begin anew."""
        if self._scaler is None:
            return
        fresh = torch.amp.GradScaler(self._device.type)
        if state:
            known = {
                **fresh.state_dict(),
                "scale": state["scale"],
                "_growth_tracker": int(state["_growth_tracker"]),
            }
            fresh.load_state_dict(known)
        self._scaler = fresh


def _tensors(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]
