"""One layer on its own, in float32 and without a net, from its type and the text of its parameters."""

from google.protobuf import text_format

from sparknet.nets.layers import LAYERS, Layer
from sparknet.nets.schema import LayerParameter

Shape = tuple[int, ...]


def layer(kind: str, text: str, *bottoms: Shape, tops: int = 1) -> Layer:
    """A layer of type `kind`; `text` is what stands beside it in a net file, such as `pooling_param { ... }`."""
    parameters = text_format.Parse(text, LayerParameter(type=kind, top=[f"top{at}" for at in range(tops)]))
    return LAYERS[kind](parameters, bottoms)
