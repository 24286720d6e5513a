"""What a net's description comes to: its layers at work, its inputs and outputs, and what a solver updates."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from sparknet.caffe.layers import InputBlob, Layer, Shape
from sparknet.caffe.schema import LayerParameter

__all__ = ["BuildPlan", "Learnable", "Step"]


# Compared as the objects that they are (eq=False): tensors have no one truth value, and two layers of equal text
# are two.
@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One layer at work: what it reads and what it writes."""

    name: str
    layer: Layer
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    detached: tuple[bool, ...]
    """Which bottoms get no gradient (`propagate_down: false`)."""
    weights: tuple[float, ...]
    """Of each top in the net's loss."""
    description: LayerParameter
    bottom_shapes: tuple[Shape, ...]
    top_shapes: tuple[Shape, ...]
    run: Callable[..., Tensor | tuple[Tensor, ...]]
    """What a pass calls: the layer, or a shorter way to the same blobs."""


@dataclass(frozen=True, eq=False, slots=True)
class Learnable:
    """A blob that the solver updates; one that several layers share by name appears once."""

    name: str
    """`<layer>/<index>`, of the first layer that has it."""
    layer: Layer
    """That layer."""
    attribute: str
    """Where that layer has it."""
    lr_mult: float
    decay_mult: float

    @property
    def tensor(self) -> Tensor:
        """The parameter, or the buffer where the layer itself keeps the blob (BatchNorm), as it is now."""
        # Looked up each time: a change of dtype or device gives the layer another buffer.
        return getattr(self.layer, self.attribute)


@dataclass(eq=False, slots=True)
class BuildPlan:
    """All that a description comes to."""

    inputs: dict[str, InputBlob] = field(default_factory=dict[str, InputBlob])
    steps: list[Step] = field(default_factory=list[Step])
    shapes: dict[str, Shape] = field(default_factory=dict[str, Shape])
    """Of every blob, as it stands after the whole pass."""
    # Caffe keeps them in a set of strings, and its logs and its test results come in that order.
    outputs: tuple[str, ...] = ()
    """Blobs that no layer reads, sorted by name."""
    learnable: list[Learnable] = field(default_factory=list[Learnable])
