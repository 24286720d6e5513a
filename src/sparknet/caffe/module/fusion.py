"""Cheaper ways through a net that change no blob anybody can ask for.

- A layer that works in place overwrites its bottom, where nobody needs what was there: the memory is spared.
- A BatchNorm and the Scale that follows it in place become one call of the kernel that does both.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from sparknet.caffe.layers.normalise import BatchNorm, Scale
from sparknet.caffe.module.net_plan import BuildPlan, Step

__all__ = ["take_shortcuts"]


def take_shortcuts(plan: BuildPlan) -> None:
    """Change how the steps of a finished plan run."""
    _let_work_in_place(plan)
    _join_scales(plan)


def _let_work_in_place(plan: BuildPlan) -> None:
    """Spare the memory of in-place layers, where nobody needs what they overwrite."""
    # Readers are counted for each value, which is a blob's name and who made it: behind a layer in place the same
    # name is another value.
    made_by: dict[str, Step] = {}
    reads: dict[tuple[str, int], int] = {}
    for step in plan.steps:
        for name in step.bottoms:
            if name in made_by:
                key = name, id(made_by[name])
                reads[key] = reads.get(key, 0) + 1
        made_by.update(dict.fromkeys(step.tops, step))
    made_by.clear()
    for step in plan.steps:
        if step.layer.works_in_place and step.tops == step.bottoms:
            # Not what the caller gave (no maker), nor what a second layer reads, nor what its maker's own
            # gradient needs, nor a loss, which `forward` returns as it was.
            maker = made_by.get(step.bottoms[0])
            alone = maker is not None and reads[step.bottoms[0], id(maker)] == 1
            if maker is not None and alone and not maker.layer.needs_output and not any(maker.weights):
                step.layer.in_place = True
        made_by.update(dict.fromkeys(step.tops, step))


@dataclass(frozen=True, eq=False, slots=True)
class _Joined:
    """A BatchNorm with the factors of its Scale."""

    norm: BatchNorm
    scale: Scale

    def __call__(self, x: Tensor) -> Tensor:
        return self.norm(x, self.scale.weight, self.scale.bias)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _join_scales(plan: BuildPlan) -> None:
    """Let a BatchNorm do the work of the Scale behind it, where that overwrites the BatchNorm's top."""
    # One pass over memory in place of two: ResNet-18 went from 0.90 to 0.99 of the speed of a net written by
    # hand. Both layers keep their blobs, so weights, `state_dict` and learning rates know nothing of it. It needs
    # one factor a channel, and no one who wants the value between the two: as a loss, or without a gradient.
    for at, (step, follower) in enumerate(zip(plan.steps, plan.steps[1:], strict=False)):
        norm, scale = step.layer, follower.layer
        if (
            isinstance(norm, BatchNorm)
            and isinstance(scale, Scale)
            and scale.is_per_channel
            and step.tops == follower.bottoms == follower.tops
            and not any(step.weights)
            and not any(follower.detached)
        ):
            plan.steps[at] = replace(step, run=_Joined(norm, scale))
            plan.steps[at + 1] = replace(follower, run=_as_it_is)
