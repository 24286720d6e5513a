"""What the class of a Python layer derives from (python_layer.hpp and _caffe.cpp)."""

from collections.abc import Sequence
from enum import IntEnum

from sparknet.caffe.pycaffe.blob import Blob, Blobs

__all__ = ["TEST", "TRAIN", "Layer"]


class Phase(IntEnum):
    """A number, as in Caffe 1.0, that is also written as a name: published layers take it for the one or other."""

    TRAIN = 0
    TEST = 1

    def __str__(self) -> str:
        return self.name


TRAIN, TEST = Phase.TRAIN, Phase.TEST


class Layer:
    """Base of the classes that `python_param` names.

    Args:
        parameters: the layer's description; classes with an `__init__` of their own hand it on.

    Attributes:
        param_str: what `python_param` says, for the layer to read.
        phase: TRAIN or TEST.
        blobs: what is learned; `setup` adds to it, `backward` adds to their `diff`.
    """

    param_str: str
    phase: Phase
    blobs: Blobs

    def __init__(self, parameters: object = None) -> None:
        self.layer_param = parameters

    @property
    def param_str_(self) -> str:
        """`param_str`, as it was called before Caffe 1.0."""
        return self.param_str

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Look at the layer's parameters and bottoms, once."""
        raise NotImplementedError(f"class {type(self).__name__} has no setup(self, bottom, top): write it")

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Give the tops their shapes, before each pass."""
        raise NotImplementedError(f"class {type(self).__name__} has no reshape(self, bottom, top): write it")

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Write the tops' `data`."""
        raise NotImplementedError(f"class {type(self).__name__} has no forward(self, bottom, top): write it")

    def backward(self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]) -> None:
        """Write the `diff` of those bottoms that `propagate_down` marks."""
        raise NotImplementedError(
            f"class {type(self).__name__} has no backward(self, top, propagate_down, bottom), and a gradient is "
            "wanted of it: write it, or give the layer propagate_down: false for each bottom"
        )
