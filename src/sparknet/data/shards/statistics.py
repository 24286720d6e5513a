"""What is counted while rows become shards: classes, and the sums behind mean image and standard deviation."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparknet.data.rows.columns import Column

__all__ = ["Statistics", "Sums"]

_BLOCK_VALUES = 1 << 17  # of so many values a block's squares or differences stay in the cache
_MOST_BYTES = 257  # uint16 holds the sum of so many bytes
_MOST_SQUARES = 1 << 16  # uint32 holds the sum of so many squares of bytes


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Sums:
    """Sums over some rows of one column of numbers; those of two sets of rows add up to those of their union."""

    rows: int
    """Number of rows; of images of several sizes, number of their places."""
    total: np.ndarray
    """Sum over the rows of each value, float64 [*shape]; exact for bytes."""
    deviation: np.ndarray
    """Sum over rows and places of (value - the channel's mean)², float64 [channels]: the column's first axis.

    Sums of squares would lose the digits of small deviations from large means."""

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> "Sums":
        """Of no rows."""
        return cls(rows=0, total=np.zeros(shape, np.float64), deviation=np.zeros(shape[0], np.float64))

    @classmethod
    def of(cls, values: np.ndarray) -> "Sums":
        """Count `values`, uint8 or float32 [n, *shape], of one axis at least."""
        total, deviation = (_count_bytes if values.dtype == np.uint8 else _count_floats)(values)
        return cls(rows=len(values), total=total, deviation=deviation)

    @classmethod
    def of_image(cls, image: np.ndarray) -> "Sums":
        """Count the places of one image, uint8 [channels, height, width], as rows of shape (channels, 1, 1)."""
        whole = cls.of(image.reshape(1, len(image), -1))
        return cls(rows=image[0].size, total=whole.total.sum(1).reshape(-1, 1, 1), deviation=whole.deviation)

    @property
    def mean_image(self) -> np.ndarray:
        """Mean over the rows, float32 [*shape]; at least one row is needed."""
        return (self.total / self.rows).astype(np.float32)

    @property
    def channel_mean(self) -> tuple[float, ...]:
        """Mean over rows and places of each channel; at least one row is needed."""
        return tuple(float(mean) for mean in self._channel_sum / self._values)

    @property
    def channel_std(self) -> tuple[float, ...]:
        """Population standard deviation over rows and places of each channel; at least one row is needed."""
        return tuple(float(std) for std in np.sqrt(self.deviation / self._values))

    @property
    def _channel_sum(self) -> np.ndarray:
        """Sum over rows and places of each channel, float64 [channels]."""
        return _by_channel(self.total)

    @property
    def _values(self) -> int:
        """Values of each channel."""
        return self.rows * self.total[0].size

    def __add__(self, other: "Sums") -> "Sums":
        """The sums of both sets of rows.

        Deviations: d = d1 + d2 + (mean2 - mean1)² n1 n2 / (n1 + n2), after Chan, Golub and LeVeque (1983).
        """
        deviation = self.deviation + other.deviation
        here, there = self._values, other._values
        # An empty part has no mean.
        if here and there:
            apart = other._channel_sum / there - self._channel_sum / here
            deviation += apart**2 * (here * (there / (here + there)))
        return Sums(rows=self.rows + other.rows, total=self.total + other.total, deviation=deviation)


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Statistics:
    """What was counted of some rows, by column; those of two sets of rows add up to those of their union."""

    rows: int
    """Number of rows."""
    sums: dict[str, Sums]
    """Of columns of numbers with at least one axis."""
    counts: dict[str, np.ndarray]
    """Of columns of classes the rows of each class, int64 [largest class + 1]."""

    @classmethod
    def of(cls, columns: Iterable[Column], values: Mapping[str, np.ndarray]) -> "Statistics":
        """Count rows: by column its `dtype` [n, *shape]; classes are not negative."""
        columns = tuple(columns)
        return cls(
            rows=len(values[columns[0].name]),
            sums={one.name: _sums_of(one, values[one.name]) for one in columns if _is_summed(one)},
            counts={
                one.name: np.bincount(values[one.name].reshape(-1)) for one in columns if one.classes is not None
            },
        )

    @classmethod
    def none(cls, columns: Iterable[Column]) -> "Statistics":
        """Of no rows."""
        columns = tuple(columns)
        return cls(
            rows=0,
            sums={one.name: Sums.none(_summed_shape(one)) for one in columns if _is_summed(one)},
            counts={one.name: np.zeros(0, np.int64) for one in columns if one.classes is not None},
        )

    @classmethod
    def load(cls, path: Path, columns: Iterable[Column]) -> "Statistics":
        """Read what `save` wrote of rows with these columns.

        Raises:
            OSError: the file cannot be read.
        """
        empty = cls.none(columns)
        with np.load(path, allow_pickle=False) as arrays:
            rows = int(arrays["rows"])
            return cls(
                rows=rows,
                sums={
                    name: Sums(
                        rows=int(arrays[f"rows{at}"]),
                        total=arrays[f"total{at}"],
                        deviation=arrays[f"deviation{at}"],
                    )
                    for at, name in enumerate(empty.sums)
                },
                counts={name: arrays[f"counts{at}"] for at, name in enumerate(empty.counts)},
            )

    def save(self, path: Path) -> None:
        """Write all sums into an `.npz` file.

        Raises:
            OSError: the file cannot be written.
        """
        # By number: a column's name may be no name of a file.
        arrays: dict[str, Any] = {"rows": np.array(self.rows, np.int64)}
        for at, sums in enumerate(self.sums.values()):
            arrays |= {f"total{at}": sums.total, f"deviation{at}": sums.deviation}
            arrays[f"rows{at}"] = np.array(sums.rows, np.int64)
        arrays |= {f"counts{at}": counts for at, counts in enumerate(self.counts.values())}
        np.savez(path, **arrays)

    def __add__(self, other: "Statistics") -> "Statistics":
        """The statistics of both sets of rows, which have the same columns."""
        return Statistics(
            rows=self.rows + other.rows,
            sums={name: sums + other.sums[name] for name, sums in self.sums.items()},
            counts={name: _added(counts, other.counts[name]) for name, counts in self.counts.items()},
        )


def _is_summed(column: Column) -> bool:
    """Whole numbers have no mean that means anything, and single numbers are targets and weights."""
    return column.dtype != "int64" and bool(column.shape)


def _summed_shape(column: Column) -> tuple[int, ...]:
    # Images of several sizes have no mean image, only a mean of each channel over all places.
    return (column.shape[0], 1, 1) if column.own_size else column.shape


def _sums_of(column: Column, values: np.ndarray) -> Sums:
    if not column.own_size:
        return Sums.of(values)
    return sum((Sums.of_image(image) for image in values), Sums.none(_summed_shape(column)))


def _added(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    # Parts have seen different largest classes.
    counts = np.zeros(max(len(here), len(there)), np.int64)
    counts[: len(here)] = here
    counts[: len(there)] += there
    return counts


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
