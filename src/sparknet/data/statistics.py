"""What is counted while rows become shards: labels, and the sums behind the mean image."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["Statistics"]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Statistics:
    """Sums over some rows; those of two sets of rows add up to those of their union."""

    rows: int
    """Number of rows."""
    label_counts: np.ndarray
    """Rows of each label, int64 [largest label + 1]."""
    pixel_sum: np.ndarray
    """Sum over the rows of each input value, float64 [*shape]; exact for bytes."""

    @classmethod
    def of(cls, inputs: np.ndarray, labels: np.ndarray) -> "Statistics":
        """Count `inputs`, uint8 or float32 [n, *shape], and `labels`, int64 [n], not negative."""
        # uint32 sums bytes twice as fast as float64 and holds 16 million rows of them
        exact = inputs.dtype == np.uint8 and len(inputs) < 1 << 24
        total = inputs.sum(axis=0, dtype=np.uint32 if exact else np.float64)
        return cls(rows=len(labels), label_counts=np.bincount(labels), pixel_sum=total.astype(np.float64))

    @classmethod
    def merged(cls, parts: Iterable["Statistics"], *, shape: tuple[int, ...]) -> "Statistics":
        """Add `parts`, whose inputs have `shape`, in their order."""
        rows, counts, total = 0, np.zeros(0, np.int64), np.zeros(shape, np.float64)
        for part in parts:
            rows += part.rows
            wide = np.zeros(max(len(counts), len(part.label_counts)), np.int64)
            wide[: len(counts)] = counts
            wide[: len(part.label_counts)] += part.label_counts
            counts = wide
            total += part.pixel_sum
        return cls(rows=rows, label_counts=counts, pixel_sum=total)

    @property
    def labels(self) -> tuple[int, int] | None:
        """The smallest and largest label; None without rows."""
        seen = np.flatnonzero(self.label_counts)
        return (int(seen[0]), int(seen[-1])) if len(seen) else None

    @property
    def channel_sum(self) -> np.ndarray:
        """Sum over rows and places of each channel (the input's first axis), float64 [channels]."""
        return self.pixel_sum.sum(axis=tuple(range(1, self.pixel_sum.ndim)))

    @property
    def mean_image(self) -> np.ndarray:
        """Mean over the rows, float32 [*shape]; at least one row is needed."""
        return (self.pixel_sum / self.rows).astype(np.float32)

    @property
    def channel_mean(self) -> tuple[float, ...]:
        """Mean over rows and places of each channel; at least one row is needed."""
        places = self.rows * self.pixel_sum[0].size
        return tuple(float(total) for total in self.channel_sum / places)
