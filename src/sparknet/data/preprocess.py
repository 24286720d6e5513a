"""From stored values to what the net sees: (x - mean) * scale in float32, cut out and mirrored."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sparknet.data.manifest import Manifest
from sparknet.errors import DataError

__all__ = ["Normalise"]

Cut = Literal["centre", "random"]

_Y, _X, _MIRROR = 0, 1, 2  # which of a row's random numbers decides what


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Normalise:
    """Subtracts a mean, multiplies by a scale, cuts a square out and mirrors, as Caffe's data layers do.

    The mean image lies under the whole stored image, so that a cut takes its own part of it.
    """

    mean: np.ndarray | None
    """float32, of the input's shape or broadcasting to it ([channels, 1, 1]); None subtracts nothing."""
    scale: float
    """Factor after the subtraction."""
    crop: int = 0
    """Side of the square that is cut out; 0: the whole image."""
    cut: Cut = "centre"
    """Where: in the middle, or each row at a place of its own."""
    mirror: bool = False
    """Each row is mirrored left to right with probability 1/2."""

    @classmethod
    def from_manifest(
        cls, manifest: Manifest, directory: Path, *, mean: Literal["none", "channel", "image"], scale: float
    ) -> "Normalise":
        """Take the training rows' mean from a prepared data set.

        Args:
            manifest: of the prepared data.
            directory: the manifest's.
            mean: nothing, one value per channel, or the mean image.
            scale: factor after the subtraction.

        Raises:
            DataError: the mean image cannot be read.
        """
        if mean == "none":
            return cls(mean=None, scale=scale)
        if mean == "image":
            return cls(mean=manifest.load_mean_image(directory), scale=scale)
        places = (1,) * (len(manifest.input.shape) - 1)
        channels = np.array(manifest.channel_mean, np.float32)
        return cls(mean=channels.reshape(-1, *places), scale=scale)

    def __call__(self, images: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """Turn stored rows into what the net is given.

        Args:
            images: uint8 or float32 [n, *shape]; [n, channels, height, width] where something is cut or mirrored.
            draws: random numbers of each row, uint64 [n, 4]; needed for random cuts and mirroring.

        Returns:
            New, writable, C-contiguous float32 [n, *shape], or [n, channels, crop, crop].
        """
        # One conversion and then in place: on 256x3x32x32 bytes as fast as any fused form that numpy
        # offers, and six times as fast as a table of the 256 results per channel.
        mean = self.mean
        if self.crop:
            images, mean = self._cut_out(images, draws)
        result = images.astype(np.float32, order="C", copy=True)
        if mean is not None:
            result -= mean
        if self.scale != 1:
            result *= np.float32(self.scale)
        if self.mirror:
            chosen = _needed(draws)[:, _MIRROR] >> np.uint64(63) == 1
            result[chosen] = result[chosen, ..., ::-1]
        return result

    def row_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one row after it went through, for a stored row of `shape`.

        Raises:
            DataError: a square of this size cannot be cut out of it.
        """
        if (self.crop or self.mirror) and len(shape) != 3:
            raise DataError(
                f"the rows have shape {shape}; cutting and mirroring take (channels, height, width): set "
                "data.shape, or take crop_size and mirror out of the net's transform_param"
            )
        if not self.crop:
            return shape
        if min(shape[1:]) < self.crop:
            raise DataError(
                f"crop_size is {self.crop} and the images are {shape[1]}x{shape[2]}; they must be at least as "
                "large: lower crop_size in the net's transform_param or give larger images"
            )
        return (shape[0], self.crop, self.crop)

    def _cut_out(self, images: np.ndarray, draws: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """The windows of the images, and of the mean where it has as many places as they."""
        side, (height, width) = self.crop, images.shape[2:]
        # a mean per channel or of one value lies under every window alike
        pixels = self.mean is not None and self.mean.shape[1:] == (height, width)
        if self.cut == "centre":
            y, x = (height - side) // 2, (width - side) // 2
            window = (..., slice(y, y + side), slice(x, x + side))
            return images[window], self.mean[window] if pixels and self.mean is not None else self.mean
        drawn = _needed(draws)
        ys = (drawn[:, _Y] % np.uint64(height - side + 1)).astype(np.int64)
        xs = (drawn[:, _X] % np.uint64(width - side + 1)).astype(np.int64)
        cut = sliding_window_view(images, (side, side), axis=(2, 3))[np.arange(len(images)), :, ys, xs]
        if not pixels or self.mean is None:
            return cut, self.mean
        return cut, np.moveaxis(sliding_window_view(self.mean, (side, side), axis=(1, 2))[:, ys, xs], 1, 0)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything needed to make this again, as arrays for a model file."""
        arrays: dict[str, np.ndarray] = {"scale": np.array(self.scale, np.float64)}
        if self.mean is not None:
            arrays["mean"] = self.mean
        if self.crop:
            arrays["crop"] = np.array(self.crop, np.int64)
        for name, chosen in (("random_cut", self.cut == "random"), ("mirror", self.mirror)):
            if chosen:
                arrays[name] = np.array(1, np.uint8)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Normalise":
        """Make what `to_arrays` described.

        Raises:
            DataError: there is no scale, or there are arrays with other names.
        """
        if "scale" not in arrays or not set(arrays) <= {"scale", "mean", "crop", "random_cut", "mirror"}:
            raise DataError(
                f"preprocessing arrays are {sorted(arrays)}; they must be scale and perhaps mean, crop, "
                "random_cut, mirror: use a model that this package saved"
            )
        return cls(
            mean=arrays.get("mean"),
            scale=float(arrays["scale"]),
            crop=int(arrays.get("crop", 0)),
            cut="random" if "random_cut" in arrays else "centre",
            mirror="mirror" in arrays,
        )


def _needed(draws: np.ndarray | None) -> np.ndarray:
    if draws is None:
        raise ValueError("random cuts and mirroring need draws")
    return draws
