"""What one task of the preparation does: the rows of one DataFrame partition become shards."""

import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sparknet.data.rows.arrow_values import Rows, encoded_cells, label_values, validation_marks
from sparknet.data.rows.columns import Column
from sparknet.data.rows.inputs import Damage, InputPlan, next_piece, read_inputs
from sparknet.data.rows.ragged import Cells
from sparknet.data.shards.held_out import held_out
from sparknet.data.shards.shard_table import ShardWriter
from sparknet.data.shards.statistics import Statistics
from sparknet.errors import DataError

__all__ = ["PartitionPlan", "PartitionReport", "ShardReport", "write_partition"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionPlan:
    """Everything a task needs to know; it travels to the workers."""

    directory: str
    """Where the shards are written: it exists, and every worker reaches it."""
    input: InputPlan
    """How the input column is read."""
    label: str
    """Name of the label column."""
    validation: str
    """Name of the column that marks validation rows; empty when `fraction` draws them."""
    keep: Literal["pixels", "encoded"] = "pixels"
    """What the shards hold of images."""
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

    split: Literal["train", "validation"]
    """Which rows it holds."""
    name: str
    """File name in the plan's directory."""
    rows: int
    """Rows it holds."""
    largest_label: int
    """Of its rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionReport:
    """What a task has made of its rows."""

    partition: int
    """The Spark partition the rows came from."""
    column: Column | None = None
    """What the shards hold of the input; None where every row is damaged."""
    shards: tuple[ShardReport, ...]
    """What was written: training shards, then validation shards."""
    sums: str
    """File with the `Statistics` of the task's training rows; "" where nothing was written.

    A file, since a thousand sums of ImageNet's size exceed what Spark lets a driver collect."""
    damage: Damage
    """Rows that were left out."""


class _Writers:
    """The two splits' shards of one task."""

    def __init__(self, plan: PartitionPlan, *, column: Column, partition: int) -> None:
        # A task may be tried again or run twice at once: no attempt may touch another's files.
        self._attempt = f"{partition:05d}-{uuid.uuid4().hex}"
        self.column = column if plan.keep == "encoded" else replace(column, image=None)
        self._directory = Path(plan.directory)
        columns = (self.column, Column(name=plan.label, dtype="int64", shape=()))
        self._train, self._validation = (
            ShardWriter(
                self._directory,
                prefix=f"{split}-{self._attempt}",
                columns=columns,
                shard_bytes=plan.shard_bytes,
            )
            for split in ("train", "validation")
        )

    def append(self, inputs: np.ndarray, labels: np.ndarray, marks: np.ndarray, encoded: Any) -> None:
        """Add rows; `encoded` is an Arrow array of the files to keep, or None for the pixels."""
        for writer, chosen in ((self._validation, marks), (self._train, ~marks)):
            if chosen.all():
                files = None if encoded is None else Cells.of(encoded)
                writer.append(inputs, labels, encoded=files)
            elif chosen.any():
                files = None if encoded is None else Cells.of(encoded.filter(pa.array(chosen)))
                writer.append(inputs[chosen], labels[chosen], encoded=files)

    def finish(self) -> tuple[str, tuple[ShardReport, ...]]:
        """Close all files; name the file of sums, and report on the shards."""
        train, validation = self._train.close(), self._validation.close()
        sums = f"sums-{self._attempt}.npz"
        total = Statistics.merged((shard.statistics for shard in train), shape=self.column.shape)
        total.save(self._directory / sums)
        written: list[tuple[Literal["train", "validation"], Any]] = [
            *(("train", shard) for shard in train),
            *(("validation", shard) for shard in validation),
        ]
        return sums, tuple(
            ShardReport(
                split=split,
                name=shard.name,
                rows=shard.statistics.rows,
                largest_label=len(shard.statistics.label_counts) - 1,
            )
            for split, shard in written
        )


def write_partition(plan: PartitionPlan, batches: Iterable[Any], *, partition: int) -> PartitionReport | None:
    """Write a partition's rows as shards of both splits.

    Args:
        plan: what to write, and where.
        batches: Arrow record batches of the columns input (see `input_column`), label (int64), if
            `plan.validation` marks (boolean), in this order, and maybe `error` (string): what is wrong with a
            damaged row, null for others.
        partition: the Spark partition.

    Returns:
        What was written; None for a partition without rows.

    Raises:
        DataError: a row that is neither damaged nor as the plan says, or a directory that cannot be written.
    """
    try:
        return _Task(plan, partition).work(batches)
    except OSError as error:
        raise DataError(
            f"{plan.directory}: cannot be written from {socket.gethostname()}: {error}; set data.store to a "
            "directory that every worker can write"
        ) from error


class _Task:
    """The state of one task between batches."""

    def __init__(self, plan: PartitionPlan, partition: int) -> None:
        self._plan = plan
        self._rows = Rows(partition=partition, first=0)
        self._column: Column | None = None
        self._writers: _Writers | None = None
        self._damage = Damage()

    def work(self, batches: Iterable[Any]) -> PartitionReport | None:
        for batch in batches:
            at = 0
            while at < batch.num_rows:
                piece = next_piece(self._plan.input, batch, at, column=self._column)
                self._write(piece)
                self._rows = replace(self._rows, first=self._rows.first + piece.num_rows)
                at += piece.num_rows
        if not self._rows.first:
            return None
        sums, shards = self._writers.finish() if self._writers else ("", ())
        return PartitionReport(
            partition=self._rows.partition,
            column=self._writers.column if self._writers else None,
            shards=shards,
            sums=sums,
            damage=self._damage,
        )

    def _write(self, batch: pa.RecordBatch) -> None:
        plan, rows = self._plan, self._rows
        found = read_inputs(plan.input, batch, column=self._column, rows=rows)
        self._column = found.column
        self._damage += found.damage
        good = found.good
        if found.column is None or not good.any():
            return
        labels = label_values(found.batch.column(1), name=plan.label, classes=plan.classes, rows=rows)
        # Drawn for damaged rows too: which rows are held out does not depend on others being whole.
        marks = _marks(plan, found.batch, rows=rows)
        if self._writers is None:
            self._writers = _Writers(plan, column=found.column, partition=rows.partition)
        files = None
        if self._writers.column.image:
            files = encoded_cells(batch.column(0), name=plan.input.name)
        if not good.all():
            labels, marks = labels[good], marks[good]
            files = None if files is None else files.filter(pa.array(good))
        self._writers.append(found.values, labels, marks, files)


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
