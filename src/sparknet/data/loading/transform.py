"""From stored values to what the net sees: (x - mean) * scale / std in float32, cut out and mirrored."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from sparknet.data.loading.row_random import places, tosses
from sparknet.data.shards.manifest import StoredColumn
from sparknet.data.storage.place import Place
from sparknet.errors import DataError

__all__ = ["Normalise", "Windows", "channel_values"]

Cut = Literal["centre", "random"]

_Y, _X, _MIRROR = 0, 1, 2  # which of a row's random numbers decides what

_PIECE_BYTES = 1 << 20  # whole rows stay in the cache from their conversion to their scaling
_THREAD_BYTES = 4 << 20  # what a thread must have to do to be worth its start

_NAMES = ("scale", "mean", "std", "crop", "random_cut", "mirror")


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Windows:
    """What is cut out of each row."""

    ys: np.ndarray
    """First line, int64 [n]."""
    xs: np.ndarray
    """First column, int64 [n]."""
    turned: np.ndarray
    """The window is mirrored left to right, bool [n]."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Normalise:
    """Subtracts a mean, multiplies by a scale, divides by a deviation, cuts a square out and mirrors.

    The arithmetic is that of Caffe's data layers, which know no deviation. The mean image lies under the whole
    stored image, so that a cut takes its own part of it.
    """

    mean: np.ndarray | None
    """float32, of the input's shape, per channel ([channels, 1, 1]) or of one number; None subtracts nothing."""
    scale: float
    """Factor after the subtraction."""
    std: np.ndarray | None = None
    """Divides what was scaled: float32 per channel ([channels, 1, 1]) or of one number; None: nothing does."""
    crop: int = 0
    """Side of the square that is cut out; 0: the whole image."""
    cut: Cut = "centre"
    """Where: in the middle, or each row at a place of its own."""
    mirror: bool = False
    """Each row is mirrored left to right with probability 1/2."""

    @classmethod
    def of_rows(
        cls,
        stored: StoredColumn,
        directory: Path | Place,
        *,
        mean: Literal["none", "channel", "image"],
        scale: float,
        std: Literal["none", "channel"] = "none",
    ) -> "Normalise":
        """Take the training rows' mean and deviation of a column from a prepared data set.

        Args:
            stored: the column, as the manifest has it.
            directory: the manifest's.
            mean: nothing, one value per channel, or the mean image.
            scale: factor after the subtraction.
            std: nothing, or the deviation of each channel; of a channel that is the same everywhere, 1.

        Raises:
            DataError: the mean image cannot be read.
        """
        shape = stored.column.shape
        taken_off: np.ndarray | None = None
        if mean == "image":
            taken_off = stored.load_mean_image(directory)
        elif mean == "channel":
            taken_off = channel_values(stored.channel_mean, shape)
        deviation: np.ndarray | None = None
        if std == "channel":
            # The manifest has the deviation of what is stored; what is divided has been scaled.
            found = channel_values(stored.channel_std, shape) * np.float32(abs(scale))
            deviation = np.where(found == 0, np.float32(1), found)
        return cls(mean=taken_off, scale=scale, std=deviation)

    def __call__(self, images: np.ndarray, draws: np.ndarray | None = None, *, threads: int = 1) -> np.ndarray:
        """Turn stored rows into what the net is given.

        Args:
            images: uint8 or float32 [n, *shape]; [n, channels, height, width] where something is cut or mirrored.
            draws: random numbers of each row, uint32 [n, 4]; needed for random cuts and mirroring.
            threads: share the rows among so many, if there is enough to do; the result is the same to the last bit.

        Returns:
            New, writable, C-contiguous float32 [n, *shape], or [n, channels, crop, crop].

        Raises:
            DataError: a square of this size cannot be cut out.
        """
        shape = self.row_shape(images.shape[1:])
        result = np.empty((len(images), *shape), np.float32)
        windows = self.windows(images.shape, draws)
        shares = max(1, min(threads, result.nbytes // _THREAD_BYTES))
        row_bytes = 4 * int(np.prod(shape, dtype=np.int64))
        if self.crop or self.mirror:
            step = -(-len(images) // shares)  # a piece for each thread: a row stays in the cache by itself
            fill = partial(self._fill_by_row, result, images, windows, self._means_both_ways())
        else:
            step = _PIECE_BYTES // max(1, row_bytes)
            fill = partial(self._fill_at_once, result, images)
        step = max(1, step)
        _each(fill, [slice(at, at + step) for at in range(0, len(images), step)], threads=shares)
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

    def windows(self, shape: tuple[int, ...], draws: np.ndarray | None) -> Windows:
        """What is cut out of rows of `shape`, [n, *row]: drawn, or the middle, or all.

        Raises:
            ValueError: `draws` are needed and are None.
        """
        rows = shape[0]
        places_free = tuple(size - self.crop for size in shape[2:]) if self.crop else (0, 0)
        if draws is None:  # a cut from the middle draws nothing
            if self.mirror or (self.crop and self.cut == "random"):
                raise ValueError("random cuts and mirroring need draws")
            draws = np.zeros((rows, 1), np.uint32)
        if self.crop and self.cut == "random":
            ys, xs = (places(draws[:, at], free + 1) for at, free in zip((_Y, _X), places_free, strict=True))
        else:
            # Rounded down, as Caffe's data transformer cuts in TEST.
            ys, xs = (np.full(rows, free // 2, np.int64) for free in places_free)
        return Windows(ys=ys, xs=xs, turned=tosses(draws[:, _MIRROR]) if self.mirror else np.zeros(rows, np.bool_))

    def place(self, height: int, width: int, draws: np.ndarray | None) -> tuple[int, int]:
        """First line and column of what is cut out of an image of this size by itself; see `windows`.

        Raises:
            ValueError: `draws`, uint32 [4], are needed and are None.
        """
        shape = (1, 1, height, width)
        self.row_shape(shape[1:])
        found = replace(self, mirror=False).windows(shape, None if draws is None else draws[None])
        return int(found.ys[0]), int(found.xs[0])

    @property
    def factor(self) -> np.ndarray | None:
        """Scale and deviation in one: float32 of `std`'s shape or of (); None where it is 1."""
        if self.std is not None:
            # In float64, so that it is rounded once.
            return np.asarray(self.scale / self.std.astype(np.float64), np.float32)
        # None, not 1: the pass over the rows is left out.
        return None if self.scale == 1 else np.array(self.scale, np.float32)

    def mean_is_image(self, shape: tuple[int, ...]) -> bool:
        """Whether the mean has as many places as rows of `shape`; if not it lies under every window alike."""
        return self.mean is not None and self.mean.shape[1:] == shape[1:]

    def _means_both_ways(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The mean, and the mean mirrored, which lies under mirrored rows."""
        if self.mean is None or not self.mirror:
            return self.mean, self.mean
        return self.mean, np.ascontiguousarray(np.atleast_1d(self.mean)[..., ::-1])

    def _fill_by_row(
        self,
        result: np.ndarray,
        images: np.ndarray,
        windows: Windows,
        means: tuple[np.ndarray | None, np.ndarray | None],
        piece: slice,
    ) -> None:
        """Windows one by one, each of which stays in the cache until it is done."""
        # All at once would be faster for small rows (3x32x32: 2.5 us a row, so 6.1) and up to twice as slow for
        # large ones, which are what takes time.
        factor, shape = self.factor, images.shape[1:]
        whole, under_pixels = result.shape[1:] == shape, self.mean_is_image(shape)
        spare = np.empty(shape, images.dtype)
        rows = zip(
            windows.ys[piece].tolist(), windows.xs[piece].tolist(), windows.turned[piece].tolist(), strict=True
        )
        for row, image, (y, x, turned) in zip(result[piece], images[piece], rows, strict=True):
            if turned:
                # The image is turned and not the window, so the window is taken from the other side. It is
                # mirrored as it is stored: a fourth of the bytes, and OpenCV is six times as fast at it as numpy
                flat = np.ascontiguousarray(image).reshape(-1, shape[-1])
                _mirror(flat, spare.reshape(flat.shape))
                image, x = spare, shape[-1] - row.shape[-1] - x
            window = ... if whole else (..., slice(y, y + self.crop), slice(x, x + self.crop))
            # Converted first and then subtracted, in float32: uint8 would wrap round, and this order is Caffe's.
            np.copyto(row, image[window])
            mean = means[turned]
            if mean is not None:
                _subtract(row, mean[window] if under_pixels else mean)
            if factor is not None:
                row *= factor

    def _fill_at_once(self, result: np.ndarray, images: np.ndarray, piece: slice) -> None:
        """Whole rows together: rows of a table or of MNIST are soon done, and Python's steps for each are not."""
        factor, part = self.factor, result[piece]
        np.copyto(part, images[piece])
        if self.mean is not None:
            part -= self.mean
        if factor is not None:
            part *= factor

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything needed to make this again, as arrays for a model file."""
        arrays: dict[str, np.ndarray] = {"scale": np.array(self.scale, np.float64)}
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None:
                arrays[name] = values
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
        if "scale" not in arrays or not set(arrays) <= set(_NAMES):
            raise DataError(
                f"preprocessing arrays are {sorted(arrays)}; they must be scale and perhaps "
                f"{', '.join(_NAMES[1:])}: use a model that this package saved"
            )
        return cls(
            mean=arrays.get("mean"),
            scale=float(arrays["scale"]),
            std=arrays.get("std"),
            crop=int(arrays.get("crop", 0)),
            cut="random" if "random_cut" in arrays else "centre",
            mirror="mirror" in arrays,
        )


def channel_values(values: tuple[float, ...], shape: tuple[int, ...]) -> np.ndarray:
    """One number per channel of rows of `shape`, or one for all, float32 [channels, 1, ...]."""
    spread = np.broadcast_to(np.array(values, np.float32), shape[:1])
    return spread.reshape(-1, *(1,) * (len(shape) - 1)).copy()


def _mirror(rows: np.ndarray, into: np.ndarray) -> None:
    # Imported where images are worked on: on a device that does it itself, OpenCV need not be there.
    import cv2

    cv2.flip(rows, 1, into)


def _subtract(row: np.ndarray, under: np.ndarray) -> None:
    """Take `under` off `row` in place; plane by plane where it is a window of a larger image.

    There numpy steps line by line, and OpenCV needs half its time; the sum is the same.
    """
    if row.ndim == 3 and under.shape == row.shape and not under.flags.c_contiguous:
        import cv2

        for plane, under_plane in zip(row, under, strict=True):
            cv2.subtract(plane, under_plane, plane)
    else:
        row -= under


def _each(do: Callable[[slice], None], pieces: list[slice], *, threads: int) -> None:
    """Do all pieces, by so many threads; they end before this returns."""
    if threads == 1 or len(pieces) == 1:
        for piece in pieces:
            do(piece)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="sparknet-normalise") as pool:
        for _ in pool.map(do, pieces):
            pass
