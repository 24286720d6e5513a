"""A layer that writes what it reads: HDF5Output."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from sparknet.caffe.layers.layer import Layer, Shape
from sparknet.caffe.schema import LayerParameter
from sparknet.errors import NetError

if TYPE_CHECKING:
    import h5py

__all__ = ["HDF5Output"]

_NAMES = ("data", "label")
"""Of the datasets (hdf5_output_layer.hpp)."""
_AXES = 4


class HDF5Output(Layer):
    """Writes its two bottoms into the datasets `data` and `label` of a file, behind those of the passes before.

    Each dataset has four axes, as Caffe's, and the net's dtype. The first pass writes the file anew; between passes
    it is closed, and whole. Caffe writes one pass and cannot write a second.
    """

    bottom_count = (2, 2)
    top_count = (0, 0)
    writes_files = True
    onnx_refusal = "it writes a file, which no graph does"

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        name = parameters.hdf5_output_param.file_name
        if not name:
            raise NetError("file_name is empty; give the file to be written: set hdf5_output_param.file_name")
        self.path = Path(name)
        self.has_begun = False
        for shape in bottoms:
            if not 1 <= len(shape) <= _AXES:
                raise NetError(f"a bottom has shape {shape}; the file holds one to four axes: reshape it before")
        if bottoms[0][0] != bottoms[1][0]:
            raise NetError(f"the bottoms have shapes {bottoms[0]} and {bottoms[1]}; expected as many rows in both")

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        """Nothing, of two blobs of as many rows."""
        if not bottoms[0].is_meta:
            self._write([bottom.detach().cpu() for bottom in bottoms])
        return ()

    def _write(self, bottoms: Sequence[Tensor]) -> None:
        # Imported here, as wherever HDF5 is used: nets without it need not have it.
        import h5py

        rows = [len(bottom) for bottom in bottoms]
        if rows[0] != rows[1]:
            raise NetError(f"the bottoms have {rows[0]} and {rows[1]} rows; expected as many in both")
        try:
            with h5py.File(self.path, "r+" if self.has_begun else "w") as file:
                for name, bottom in zip(_NAMES, bottoms, strict=True):
                    _append(file, name, bottom)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise NetError(
                f"{str(self.path)!r} cannot be written as HDF5: {reason}; the folder must exist, be writable and "
                "have room, and every pass have rows of one shape"
            ) from error
        self.has_begun = True


def _append(file: "h5py.File", name: str, bottom: Tensor) -> None:
    """Write rows behind those that are there."""
    import h5py

    shape = (*bottom.shape, *(1 for _ in range(_AXES - bottom.dim())))
    rows, numbers = shape[0], bottom.reshape(shape).numpy()
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        file.create_dataset(name, data=numbers, maxshape=(None, *shape[1:]))
        return
    if found.shape[1:] != shape[1:]:
        raise ValueError(f"{name} has rows of shape {found.shape[1:]}, and these are of {shape[1:]}")
    before = len(found)
    found.resize(before + rows, axis=0)
    found[before:] = numbers
