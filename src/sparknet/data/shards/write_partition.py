"""What one task of the preparation does: the rows of one input partition become shards."""

import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparknet.data.rows.columns import Column
from sparknet.data.rows.damage import Damage
from sparknet.data.rows.extremes import Extremes
from sparknet.data.rows.own_size import SeveralSizes
from sparknet.data.rows.reading import ReadPlan, RowReader, WholeRows
from sparknet.data.shards.delivery import Delivery, Workplace, workplace_of
from sparknet.data.shards.held_out import held_out
from sparknet.data.shards.shard_table import ShardWriter
from sparknet.data.shards.statistics import Statistics
from sparknet.errors import DataError

__all__ = ["PartitionPlan", "PartitionReport", "ShardReport", "write_partition"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionPlan:
    """Everything a task needs to know; it travels to the workers."""

    directory: str = ""
    """Where the shards are to lie, if they are files of the driver or of a shared disk: it exists."""
    mark: str = ""
    """A file of that store: who sees it writes there; "": everybody does, unless they are delivered."""
    delivery: Delivery | None = None
    """Who does not write there writes on a disk of the task's own, and hands each file over."""
    own: str = ""
    """A directory of this very host in which its training shards are left, and are read by its workers; "": they
    go where all others go."""
    rows: ReadPlan
    """How the rows are read; where it names no marks, `fraction` draws the validation rows."""
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
    bytes: int
    """Of the file."""
    sha256: str
    """Of the file."""
    classes: tuple[int, ...]
    """For each column of classes one more than the largest of its rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionReport:
    """What a task has made of its rows."""

    partition: int
    """The input partition the rows came from."""
    columns: tuple[Column, ...] = ()
    """What the shards hold; () where every row is damaged."""
    shards: tuple[ShardReport, ...]
    """What was written: training shards, then validation shards."""
    sums: str
    """File with the `Statistics` of the task's training rows; "" where nothing was written.

    A file, since a thousand sums of ImageNet's size exceed what Spark lets a driver collect."""
    damage: Damage
    """Rows that were left out."""
    several: dict[str, str] = field(default_factory=dict[str, str])
    """The column whose images turned out to be of several sizes, with two of them: it is to be read again so."""
    train: dict[str, Extremes] = field(default_factory=dict[str, Extremes])
    """By column that is judged, the outermost values of the training rows."""
    validation: dict[str, Extremes] = field(default_factory=dict[str, Extremes])
    """The same of the validation rows."""


class _Writers:
    """The two splits' shards of one task."""

    def __init__(
        self, plan: PartitionPlan, workplace: Workplace, *, columns: tuple[Column, ...], partition: int
    ) -> None:
        # A task may be tried again or run twice at once: no attempt may touch another's files.
        self._attempt = f"{partition:05d}-{uuid.uuid4().hex}"
        self.columns = columns
        self._workplace = workplace
        self.seen_train: dict[str, Extremes] = {}
        self.seen_validation: dict[str, Extremes] = {}
        # What stays on this host is handed to nobody.
        train = Workplace(directory=Path(plan.own), remedy=workplace.remedy) if plan.own else workplace
        self._train, self._validation = (
            ShardWriter(
                place.directory,
                prefix=f"{split}-{self._attempt}",
                columns=columns,
                shard_bytes=plan.shard_bytes,
                deliver=place.deliver,
            )
            for split, place in (("train", train), ("validation", workplace))
        )

    def append(self, rows: WholeRows, marks: np.ndarray) -> None:
        """Add rows; `marks` are the validation rows among them, bool [n]."""
        for writer, chosen, seen in (
            (self._validation, marks, self.seen_validation),
            (self._train, ~marks, self.seen_train),
        ):
            for name, extremes in rows.extremes(chosen).items():
                seen[name] = seen.get(name, Extremes()) + extremes
            # Most often: no copy is made of the rows.
            if chosen.all():
                writer.append(*rows.stored())
            elif chosen.any():
                writer.append(*rows.stored(chosen))

    def finish(self) -> tuple[str, tuple[ShardReport, ...]]:
        """Close all files; name the file of sums, and report on the shards."""
        train, validation = self._train.close(), self._validation.close()
        sums = f"sums-{self._attempt}.npz"
        # Of training rows alone: mean and deviation must know nothing of those that are held out.
        total = sum((shard.statistics for shard in train), Statistics.none(self.columns))
        total.save(self._workplace.directory / sums)
        self._workplace.deliver(self._workplace.directory / sums)
        written: list[tuple[Literal["train", "validation"], Any]] = [
            *(("train", shard) for shard in train),
            *(("validation", shard) for shard in validation),
        ]
        return sums, tuple(
            ShardReport(
                split=split,
                name=shard.name,
                rows=shard.statistics.rows,
                bytes=shard.bytes,
                sha256=shard.sha256,
                classes=tuple(len(counts) for counts in shard.statistics.counts.values()),
            )
            for split, shard in written
        )


def write_partition(plan: PartitionPlan, batches: Iterable[Any], *, partition: int) -> PartitionReport | None:
    """Write a partition's rows as shards of both splits.

    Args:
        plan: what to write, and where.
        batches: Arrow record batches as `RowReader.read` takes them.
        partition: their number.

    Returns:
        What was written; None for a partition without rows.

    Raises:
        DataError: a row that is neither damaged nor as the plan says, or a directory that cannot be written.
        SparkNetError: a file cannot be handed over.
    """
    with workplace_of(plan.directory, mark=plan.mark, delivery=plan.delivery) as workplace:
        return _write(plan, workplace, batches, partition=partition)


def _write(
    plan: PartitionPlan, workplace: Workplace, batches: Iterable[Any], *, partition: int
) -> PartitionReport | None:
    reader = RowReader(plan.rows, partition)
    writers: _Writers | None = None
    try:
        for rows in reader.read(batches):
            # Only now: what a row is, the first whole one tells.
            if writers is None:
                writers = _Writers(plan, workplace, columns=rows.columns, partition=partition)
            writers.append(rows, _marks(plan, rows, partition=partition))
        if not reader.rows:
            return None
        # A partition of damaged rows alone writes nothing, and yet is reported, for its damage counts.
        sums, shards = writers.finish() if writers else ("", ())
    except SeveralSizes as found:
        # What is written so far has no report, and is removed with all that nobody names.
        several = {found.column: found.example}
        return PartitionReport(partition=partition, shards=(), sums="", damage=Damage(), several=several)
    except OSError as error:
        raise DataError(
            f"{workplace.directory}: cannot be written from {socket.gethostname()}: {error}; {workplace.remedy}"
        ) from error
    return PartitionReport(
        partition=partition,
        columns=_written(writers.columns, reader.columns) if writers else (),
        shards=shards,
        sums=sums,
        damage=reader.damage,
        train=writers.seen_train if writers else {},
        validation=writers.seen_validation if writers else {},
    )


def _written(columns: tuple[Column, ...], seen: tuple[Column, ...]) -> tuple[Column, ...]:
    """The columns, of images that keep their own sizes with the least of all rows."""
    return tuple(
        replace(one, shape=last.shape) if one.own_size else one for one, last in zip(columns, seen, strict=True)
    )


def _marks(plan: PartitionPlan, rows: WholeRows, *, partition: int) -> np.ndarray:
    if rows.marks is not None:
        return rows.marks
    # Drawn for damaged rows too: which rows are held out does not depend on others being whole.
    drawn = held_out(plan.seed, partition=partition, start=rows.first, rows=len(rows.good), fraction=plan.fraction)
    return drawn[rows.good]
