"""Which layers exist in a state: Caffe's `include` and `exclude` rules (net.cpp: FilterNet, StateMeetsRule)."""

from collections.abc import Collection
from typing import Literal

from sparknet.caffe.schema import TEST, TRAIN, LayerParameter, NetParameter, NetStateRule, Phase
from sparknet.errors import NetError

__all__ = ["select"]

_PHASES = {"TRAIN": TRAIN, "TEST": TEST}


def select(
    net: NetParameter, *, phase: Literal["TRAIN", "TEST"], level: int = 0, stages: Collection[str] = ()
) -> list[int]:
    """Return the indices of the layers that exist in a state, in the net's order.

    A layer with `include` rules exists if the state meets one of them; any other exists unless the state meets one
    of its `exclude` rules. The phase that a layer may name itself does not decide whether it exists, as in Caffe.

    Raises:
        NetError: a phase that is none, or a layer with both kinds of rules.
    """
    if phase not in _PHASES:
        raise NetError(f"phase is {phase!r}; a net has the phases TRAIN and TEST: give one of them")
    return [
        index
        for index, layer in enumerate(net.layer)
        if _exists(layer, index, phase=_PHASES[phase], level=level, stages=stages)
    ]


def _exists(layer: LayerParameter, index: int, *, phase: Phase, level: int, stages: Collection[str]) -> bool:
    """Say whether one layer exists."""
    if layer.include and layer.exclude:
        raise NetError(
            f"layer {layer.name!r} (number {index}) has include and exclude rules; "
            f"Caffe takes one kind or the other: remove one of them"
        )
    # Without any rule a layer is in every state: no exclude rule is met.
    rules = layer.include or layer.exclude
    met = any(_meets(rule, phase=phase, level=level, stages=stages) for rule in rules)
    return met if layer.include else not met


def _meets(rule: NetStateRule, *, phase: Phase, level: int, stages: Collection[str]) -> bool:
    """Say whether a state meets every condition of a rule."""
    return (
        (not rule.HasField("phase") or rule.phase == phase)
        and (not rule.HasField("min_level") or level >= rule.min_level)
        and (not rule.HasField("max_level") or level <= rule.max_level)
        # Every stage named must hold, and none of not_stage; the rules of one layer are alternatives.
        and all(stage in stages for stage in rule.stage)
        and not any(stage in stages for stage in rule.not_stage)
    )
