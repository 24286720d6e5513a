"""What every layer is: an `nn.Module` made from its description and the shapes of its bottoms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from sparknet.caffe.schema import LayerParameter

__all__ = ["InPlace", "Layer", "Legal", "Shape"]

Shape = tuple[int, ...]
"""Of a blob, the batch axis first."""
InPlace = Literal["right", "gradient", "values", "refused"]
"""What Caffe computes in place, with a top that is its bottom: the same as otherwise; another gradient, it takes it
from what it has overwritten; other values too, for it still reads what it overwrites; or nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Legal:
    """Which numbers a layer takes in a bottom."""

    least: int = 0
    most: int
    whole: bool
    """Numbers with a fraction are none of them."""
    ignored: int | None = None
    """A number beside these that does not count."""
    ignored_by: str = ""
    """What of the layer's description says which that is, for messages; empty: nothing can."""
    room: str = ""
    """What of the net makes room for more, for messages."""


class Layer(nn.Module):
    """One layer of a net, with Caffe's semantics and torch's kernels.

    A subclass reads its own part of the description in `__init__`, refuses what cannot be (a `NetError` that
    gives expected and found; who builds the net adds the layer's name and line), and creates its blobs, filled.
    `forward` takes the bottoms and returns one tensor, or a tuple where there may be several tops. Sizes beyond
    those of the blobs are taken from the bottoms of each pass, so that the batch may change. What depends on the
    phase looks at `self.training`.

    Shapes of the tops are found by a pass over tensors without memory (device `meta`): so `forward` never looks
    at values.

    Args:
        parameters: the layer's description.
        bottoms: shapes of the bottoms.
    """

    bottom_count: ClassVar[tuple[int, int | None]] = (1, 1)
    """Least and greatest number of bottoms; None: any number."""
    top_count: ClassVar[tuple[int, int | None]] = (1, 1)
    """Least and greatest number of tops."""
    is_loss: ClassVar[bool] = False
    """Whether the first top has weight 1 in the net's loss where the file gives none."""
    works_in_place: ClassVar[bool] = False
    """Whether `forward` heeds `in_place`."""
    caffe_in_place: InPlace = "values"
    """What Caffe computes in place. Here it is always what a top of its own would have."""
    needs_output: ClassVar[bool] = True
    """Whether the backward pass may need what `forward` returned, or that is a view of a bottom: then nothing may
    overwrite it."""

    is_over_time: ClassVar[bool] = False
    """Whether the first axis of its bottoms is time, and not the batch."""
    writes_files: ClassVar[bool] = False
    """Whether a pass writes a file."""
    onnx_refusal: ClassVar[str] = ""
    """Why no ONNX file can hold the layer; empty where one can."""

    legal: Mapping[int, Legal] = MappingProxyType({})
    """By place of a bottom, which numbers may stand in it; of others any may."""
    keeps_numbers: ClassVar[bool] = False
    """Whether each top holds the numbers of the first bottom, in whatever shape."""

    blob_names: tuple[str, ...] = ()
    """Attributes that hold this layer's blobs (parameters or buffers), in Caffe's order."""
    views: "dict[str, tuple[Layer, str, Shape]]"
    """Blobs that are another layer's in another shape: that layer, its attribute, and the shape here."""
    in_place: bool = False
    """Overwrite the bottom, which nobody else needs; set by who builds the net."""

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__()
        self.views = {}

    def share(self, attribute: str, owner: "Layer", owned: str) -> None:
        """Have a blob of another layer in place of one's own, in one's own shape of as many numbers.

        Args:
            attribute: the blob here.
            owner: the other layer.
            owned: the blob there.
        """
        tensor, shape = getattr(owner, owned), tuple(getattr(self, attribute).shape)
        if tuple(tensor.shape) == shape:
            setattr(self, attribute, tensor)
            return
        # A parameter has one shape: so this one is no parameter of this layer any more, and is looked up there.
        if attribute in self._parameters:
            del self._parameters[attribute]
        self.views[attribute] = owner, owned, shape

    # Called only for what is not found otherwise, so that layers without views pay nothing.
    def __getattr__(self, name: str) -> Any:
        # By way of __dict__: where `views` is not set yet, `self.views` would come back here for ever.
        views: dict[str, tuple[Layer, str, Shape]] = self.__dict__.get("views", {})
        if name in views:
            owner, owned, shape = views[name]
            return getattr(owner, owned).view(shape)
        return super().__getattr__(name)

    def blobs(self) -> list[Tensor]:
        """The layer's learned tensors in Caffe's order, live."""
        return [getattr(self, name) for name in self.blob_names]

    def reset(self) -> None:
        """Forget what the last pass left for the next; most layers leave nothing."""

    def top_shapes(self) -> "tuple[Shape, ...] | None":
        """Shapes of the tops over the bottoms that it was made for, where it knows them; None: a pass tells."""
        return None

    def multiply_adds(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        """Multiplications with addition of one forward pass over these shapes; 0 where they are not what costs."""
        return 0
