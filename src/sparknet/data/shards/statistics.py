"""What is counted while rows become shards: labels, and the sums behind mean image and standard deviation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Statistics"]

_BLOCK_VALUES = 1 << 17  # of so many values a block's squares or differences stay in the cache
_MOST_BYTES = 257  # uint16 holds the sum of so many bytes
_MOST_SQUARES = 1 << 16  # uint32 holds the sum of so many squares of bytes


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Statistics:
    """Sums over some rows; those of two sets of rows add up to those of their union."""

    rows: int
    """Number of rows."""
    label_counts: np.ndarray
    """Rows of each label, int64 [largest label + 1]."""
    pixel_sum: np.ndarray
    """Sum over the rows of each input value, float64 [*shape]; exact for bytes."""
    channel_deviation: np.ndarray
    """Sum over rows and places of (value - the channel's mean)², float64 [channels]: the input's first axis.

    Sums of squares would lose the digits of small deviations from large means."""

    @classmethod
    def of(cls, inputs: np.ndarray, labels: np.ndarray) -> "Statistics":
        """Count `inputs`, uint8 or float32 [n, *shape], and `labels`, int64 [n], not negative."""
        total, deviation = (_count_bytes if inputs.dtype == np.uint8 else _count_floats)(inputs)
        return cls(rows=len(labels), label_counts=np.bincount(labels), pixel_sum=total, channel_deviation=deviation)

    @classmethod
    def merged(cls, parts: Iterable["Statistics"], *, shape: tuple[int, ...]) -> "Statistics":
        """Add `parts`, whose inputs have `shape`, in their order."""
        total = cls(
            rows=0,
            label_counts=np.zeros(0, np.int64),
            pixel_sum=np.zeros(shape, np.float64),
            channel_deviation=np.zeros(shape[0], np.float64),
        )
        for part in parts:
            total = total._with(part)
        return total

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Read what `save` wrote.

        Raises:
            OSError: the file cannot be read.
        """
        with np.load(path, allow_pickle=False) as arrays:
            sums = {name: arrays[name] for name in ("label_counts", "pixel_sum", "channel_deviation")}
        return cls(rows=int(sums["label_counts"].sum()), **sums)

    def save(self, path: Path) -> None:
        """Write all sums into an `.npz` file.

        Raises:
            OSError: the file cannot be written.
        """
        np.savez(
            path,
            label_counts=self.label_counts,
            pixel_sum=self.pixel_sum,
            channel_deviation=self.channel_deviation,
        )

    @property
    def labels(self) -> tuple[int, int] | None:
        """The smallest and largest label; None without rows."""
        seen = np.flatnonzero(self.label_counts)
        return (int(seen[0]), int(seen[-1])) if len(seen) else None

    @property
    def channel_sum(self) -> np.ndarray:
        """Sum over rows and places of each channel (the input's first axis), float64 [channels]."""
        return _by_channel(self.pixel_sum)

    @property
    def mean_image(self) -> np.ndarray:
        """Mean over the rows, float32 [*shape]; at least one row is needed."""
        return (self.pixel_sum / self.rows).astype(np.float32)

    @property
    def channel_mean(self) -> tuple[float, ...]:
        """Mean over rows and places of each channel; at least one row is needed."""
        return tuple(float(mean) for mean in self.channel_sum / self._values)

    @property
    def channel_std(self) -> tuple[float, ...]:
        """Population standard deviation over rows and places of each channel; at least one row is needed."""
        return tuple(float(std) for std in np.sqrt(self.channel_deviation / self._values))

    @property
    def _values(self) -> int:
        """Values of each channel."""
        return self.rows * self.pixel_sum[0].size

    def _with(self, part: "Statistics") -> "Statistics":
        """The statistics of both sets of rows.

        Deviations: d = d1 + d2 + (mean2 - mean1)² n1 n2 / (n1 + n2), after Chan, Golub and LeVeque (1983).
        """
        # Parts have seen different largest labels.
        counts = np.zeros(max(len(self.label_counts), len(part.label_counts)), np.int64)
        counts[: len(self.label_counts)] = self.label_counts
        counts[: len(part.label_counts)] += part.label_counts
        deviation = self.channel_deviation + part.channel_deviation
        here, there = self._values, part._values
        # An empty part has no mean.
        if here and there:
            apart = part.channel_sum / there - self.channel_sum / here
            deviation += apart**2 * (here * (there / (here + there)))
        return Statistics(
            rows=self.rows + part.rows,
            label_counts=counts,
            pixel_sum=self.pixel_sum + part.pixel_sum,
            channel_deviation=deviation,
        )


def _by_channel(values: np.ndarray) -> np.ndarray:
    """Sum over all axes but the first: of floats float64, of integers int64."""
    # In 64 bits, whatever numpy would choose: a float32 sum over a million rows has lost its last digits.
    wide = np.float64 if values.dtype.kind == "f" else np.int64
    return values.reshape(len(values), -1).sum(axis=1, dtype=wide)


def _blocks(inputs: np.ndarray, *, most_rows: int) -> Iterator[np.ndarray]:
    rows = max(1, min(most_rows, _BLOCK_VALUES // inputs[0].size)) if len(inputs) else 1
    for at in range(0, len(inputs), rows):
        yield inputs[at : at + rows]


def _count_bytes(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of each value and, by channel, of squared differences from the mean: both float64."""
    total = np.zeros(inputs.shape[1:], np.int64)
    squares = np.zeros(len(total), np.int64)
    for at in range(0, len(inputs), _MOST_SQUARES):
        # numpy adds narrow integers fastest: of a block's bytes 16 bits hold the sum, of the squares 32
        values, squared = np.zeros(total.shape, np.uint32), np.zeros(total.shape, np.uint32)
        for block in _blocks(inputs[at : at + _MOST_SQUARES], most_rows=_MOST_BYTES):
            # 255² fits 16 bits.
            square = np.square(block, dtype=np.uint16)
            values += block[0] if len(block) == 1 else block.sum(axis=0, dtype=np.uint16)
            squared += square[0] if len(block) == 1 else square.sum(axis=0, dtype=np.uint32)
        total += values
        squares += _by_channel(squared)
    count = len(inputs) * total[0].size
    if not count:
        return total.astype(np.float64), np.zeros(len(total))
    # Around the nearest whole number all but the last term is exact, and that one is at most count / 4.
    sums = _by_channel(total)
    centre = (2 * sums + count) // (2 * count)
    rest = (sums - centre * count).astype(np.float64)
    deviation = squares - 2 * centre * sums + centre * centre * count - rest**2 / count
    return total.astype(np.float64), deviation


def _count_floats(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_count_bytes`."""
    # Two passes, mean first: the square of a sum would take away the digits that the deviation is made of.
    total = inputs.sum(axis=0, dtype=np.float64)
    by_place = np.zeros(total.shape)
    if len(inputs):
        mean = _by_channel(total) / (len(inputs) * total[0].size)
        mean = mean.reshape(-1, *(1,) * (total.ndim - 1))
        for block in _blocks(inputs, most_rows=len(inputs)):
            apart = block - mean
            by_place += np.square(apart, out=apart).sum(axis=0)
    return total, _by_channel(by_place)
