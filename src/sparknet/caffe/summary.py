"""What a net comes to: its layers' output shapes, parameters and arithmetic, as numbers and as a table."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sparknet.caffe.layers import INPUT_LAYERS, Shape
from sparknet.caffe.module.caffe_net import CaffeNet

__all__ = ["LayerSummary", "Summary", "summarise"]

_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSummary:
    """One layer."""

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    shapes: tuple[Shape, ...]
    """Of the tops, with the batch axis."""
    parameters: int
    """Numbers in its blobs, BatchNorm's statistics too; a shared blob counts in the first layer that has it."""
    multiply_adds: int
    """Multiplications with addition in one forward pass of the whole batch; only layers with weights have any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """One state of a net."""

    name: str
    phase: str
    layers: tuple[LayerSummary, ...]
    """In the net's order, those that stand for its inputs among them."""
    outputs: tuple[str, ...]
    parameters: int
    parameter_bytes: int
    """In float32."""
    multiply_adds: int
    blob_bytes: int
    """Of all blobs of one forward pass in float32; layers that work in place have none of their own."""

    def table(self) -> str:
        """The summary as text: a line for each layer, then the totals."""
        rows = [("layer", "type", "output", "parameters", "multiply-adds")]
        for layer in self.layers:
            shapes = [
                f"{top} {'x'.join(map(str, shape)) or 'number'}"
                for top, shape in zip(layer.tops, layer.shapes, strict=False)
            ]
            first, *others = shapes or [""]
            rows.append((layer.name, layer.type, first, _grouped(layer.parameters), _grouped(layer.multiply_adds)))
            rows += [("", "", other, "", "") for other in others]
        rows.append(("total", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}"))
        return "\n".join(
            [
                f"{self.name or 'a net without a name'}, phase {self.phase}",
                *_aligned(rows),
                f"parameters {self.parameter_bytes / 1e6:,.1f} MB, blobs {self.blob_bytes / 1e6:,.1f} MB "
                f"in float32; outputs: {', '.join(self.outputs) or 'none'}",
            ]
        )


def summarise(net: CaffeNet) -> Summary:
    """Sum a net up, for the batch size that it was built with."""
    layers = tuple(_layers(net))
    parameters = sum(layer.parameters for layer in layers)
    return Summary(
        name=net.spec.parameters.name,
        phase=net.phase,
        layers=layers,
        outputs=net.outputs,
        parameters=parameters,
        parameter_bytes=parameters * _FLOAT_BYTES,
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        # By name: a layer in place has no entry of its own.
        blob_bytes=sum(math.prod(shape) for shape in net.shapes.values()) * _FLOAT_BYTES,
    )


def _layers(net: CaffeNet) -> Iterator[LayerSummary]:
    # Steps leave out the layers that stand for inputs; the description has both, in the same order.
    at_work = iter(net.steps)
    seen: set[int] = set()
    for description in net.spec.parameters.layer:
        if description.type in INPUT_LAYERS:
            tops = tuple(description.top)
            yield LayerSummary(
                name=description.name,
                type=description.type,
                bottoms=(),
                tops=tops,
                shapes=tuple(net.shapes[top] for top in tops),
                parameters=0,
                multiply_adds=0,
            )
            continue
        step = next(at_work)
        # By the tensor: a blob that two layers share is learned once, and counts once.
        own = {id(blob): blob.numel() for blob in step.layer.blobs() if id(blob) not in seen}
        seen.update(own)
        yield LayerSummary(
            name=step.name,
            type=description.type,
            bottoms=step.bottoms,
            tops=step.tops,
            shapes=step.top_shapes,
            parameters=sum(own.values()),
            multiply_adds=step.layer.multiply_adds(step.bottom_shapes, step.top_shapes),
        )


def _grouped(number: int) -> str:
    return f"{number:,}" if number else ""


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Lines of columns: text to the left, the last two, numbers, to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            text.rjust(width) if column >= len(row) - 2 else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
