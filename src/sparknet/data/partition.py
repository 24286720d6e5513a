"""What one task of the preparation does: the rows of one DataFrame partition become shards."""

import socket
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparknet.data.columns import Column
from sparknet.data.rows import Rows, input_column, input_values, label_values, validation_marks
from sparknet.data.shards import ShardWriter
from sparknet.data.split import held_out
from sparknet.data.statistics import Statistics
from sparknet.errors import DataError

__all__ = ["PartitionPlan", "ShardReport", "write_partition"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionPlan:
    """Everything a task needs to know; it travels to the workers."""

    directory: str
    """Where the shards are written: it exists, and every worker reaches it."""
    image: str
    """Name of the input column."""
    label: str
    """Name of the label column."""
    validation: str
    """Name of the column that marks validation rows; empty when `fraction` draws them."""
    shape: tuple[int, ...]
    """Of one input row; () takes the first row's length."""
    classes: int | None
    """Labels must be below this; None: no bound but the general one."""
    fraction: float
    """Share of the rows to hold out."""
    seed: int
    """Draws them."""
    shard_bytes: int
    """Size at which a shard is closed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """One shard that a task has written."""

    partition: int
    """The Spark partition its rows came from."""
    split: Literal["train", "validation"]
    """Which rows it holds."""
    name: str
    """File name in the plan's directory."""
    sums: str
    """File with the sum of each input value over the task's training rows, float64 [*shape] (`.npy`).

    A file, since a thousand sums of ImageNet's size exceed what Spark lets a driver collect."""
    dtype: Literal["uint8", "float32", "int64"]
    """Type of the input column."""
    shape: tuple[int, ...]
    """Shape of one input row."""
    label_counts: tuple[int, ...]
    """Rows of each label."""


class _Writers:
    """The two splits' shards of one task."""

    def __init__(self, plan: PartitionPlan, *, column: Column, partition: int) -> None:
        # A task may be tried again or run twice at once: no attempt may touch another's files.
        self.attempt = f"{partition:05d}-{uuid.uuid4().hex}"
        self.column = column
        self._directory = Path(plan.directory)
        columns = (column, Column(name=plan.label, dtype="int64", shape=()))
        self.train, self.validation = (
            ShardWriter(
                self._directory,
                prefix=f"{split}-{self.attempt}",
                columns=columns,
                shard_bytes=plan.shard_bytes,
            )
            for split in ("train", "validation")
        )

    def append(self, inputs: np.ndarray, labels: np.ndarray, marks: np.ndarray) -> None:
        if marks.any():
            self.validation.append(inputs[marks], labels[marks])
            inputs, labels = inputs[~marks], labels[~marks]
        self.train.append(inputs, labels)

    def finish(self, partition: int) -> Iterator[ShardReport]:
        train, validation = self.train.close(), self.validation.close()
        sums = f"sums-{self.attempt}.npy"
        total = Statistics.merged((shard.statistics for shard in train), shape=self.column.shape)
        np.save(self._directory / sums, total.pixel_sum, allow_pickle=False)
        written: list[tuple[Literal["train", "validation"], Any]] = [
            *(("train", shard) for shard in train),
            *(("validation", shard) for shard in validation),
        ]
        for split, shard in written:
            yield ShardReport(
                partition=partition,
                split=split,
                name=shard.name,
                sums=sums,
                dtype=self.column.dtype,
                shape=self.column.shape,
                label_counts=tuple(shard.statistics.label_counts.tolist()),
            )


def write_partition(plan: PartitionPlan, batches: Iterable[Any], *, partition: int) -> list[ShardReport]:
    """Write a partition's rows as shards of both splits.

    Args:
        plan: what to write, and where.
        batches: Arrow record batches of the columns input (binary, list of float32, or float32), label
            (int64) and, if `plan.validation`, marks (boolean), in this order.
        partition: the Spark partition.

    Returns:
        A report on each shard; none for a partition without rows.

    Raises:
        DataError: a row that is not as the plan says, or a directory that cannot be written.
    """
    writers: _Writers | None = None
    rows = Rows(partition=partition, first=0)
    try:
        for batch in batches:
            if not batch.num_rows:
                continue
            if writers is None:
                column = input_column(batch.column(0), name=plan.image, shape=plan.shape, rows=rows)
                writers = _Writers(plan, column=column, partition=partition)
            inputs = input_values(batch.column(0), column=writers.column, rows=rows)
            labels = label_values(batch.column(1), name=plan.label, classes=plan.classes, rows=rows)
            writers.append(inputs, labels, _marks(plan, batch, rows=rows))
            rows = Rows(partition=partition, first=rows.first + batch.num_rows)
        return list(writers.finish(partition)) if writers else []
    except OSError as error:
        raise DataError(
            f"{plan.directory}: cannot be written from {socket.gethostname()}: {error}; set data.store to a "
            "directory that every worker can write"
        ) from error


def _marks(plan: PartitionPlan, batch: Any, *, rows: Rows) -> np.ndarray:
    if plan.validation:
        return validation_marks(batch.column(2), name=plan.validation, rows=rows)
    return held_out(
        plan.seed,
        partition=rows.partition,
        start=rows.first,
        rows=batch.num_rows,
        fraction=plan.fraction,
    )
