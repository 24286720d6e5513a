"""Shards that tasks have written become a prepared data set: named, counted, and published whole or not at all."""

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sparknet.config import Data
from sparknet.data.rows.columns import Column
from sparknet.data.rows.damage import Damage
from sparknet.data.rows.extremes import Extremes
from sparknet.data.rows.reading import ReadPlan
from sparknet.data.rows.table_encoding import TableEncoding
from sparknet.data.shards.manifest import Manifest, StoredColumn, save_mean_image
from sparknet.data.shards.shard_table import Shard
from sparknet.data.shards.statistics import Statistics
from sparknet.data.shards.write_partition import PartitionReport, ShardReport
from sparknet.data.storage.place import Place
from sparknet.errors import DataError

__all__ = ["Origin", "assemble", "discard", "publish", "several_sizes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What the manifest says of where its rows came from."""

    source: dict[str, bool | int | float | str]
    """For people."""
    fingerprint: str
    seed: int
    """Drew the validation rows; 0 where nothing was drawn."""
    table: TableEncoding | None
    """How columns of words became numbers."""
    several: Mapping[str, str] = field(default_factory=dict[str, str])
    """By column of images that keep their own sizes two of them."""
    own: str = ""
    """Directory of the training shards on the hosts that read them, relative to their place there, where they stay
    under the names that they have; "": they are here."""


def several_sizes(reports: Sequence[PartitionReport], plan: ReadPlan) -> dict[str, str]:
    """By column two images of different sizes, where these may be and have not been read so: they are to be."""
    found = {name: example for report in reports for name, example in report.several.items()}
    columns = [report.columns for report in reports if report.columns]
    for at, one in enumerate(plan.columns):
        sizes = list(dict.fromkeys(each[at].shape[1:] for each in columns))
        if one.own_size == "if_needed" and len(sizes) > 1 and one.name not in found:
            (height, width), (others_height, others_width) = sizes[:2]
            found[one.name] = (
                f"images of one partition are {height} x {width} (height x width), and those of another "
                f"{others_height} x {others_width}"
            )
    return found


def assemble(
    hidden: Path,
    reports: Sequence[PartitionReport],
    data: Data,
    *,
    origin: Origin,
    draft: Place | None = None,
) -> None:
    """Give the reported shards their names, remove what failed attempts left, and write the manifest.

    Args:
        hidden: directory of the shards; of those of a draft, an empty one for the manifest and the mean images.
        reports: of the tasks, by partition.
        data: what was asked for.
        origin: of the rows.
        draft: where the shards were uploaded to, and keep their names: object stores rename by copying. The
            manifest is one of the directory above it.

    Raises:
        DataError: the reports do not make a data set: too many damaged rows, none at all, shapes that differ, or
            shards that are not seen here.
        OSError: the directory cannot be written.
    """
    damage = sum((report.damage for report in reports), Damage())
    rows = sum(shard.rows for report in reports for shard in report.shards)
    # First: too much damage explains whatever else may look wrong below.
    damage.check(rows + damage.rows, share=data.corrupt_share)
    columns = _common_columns(reports)
    parts = {split: _shards(reports, split) for split in ("train", "validation")}
    for split, part in parts.items():
        if not part and (split == "train" or data.validation is None):
            raise DataError(f"the {split} set is empty; {_empty_remedy(data, split)}")
    elsewhere = draft is not None or bool(origin.own)
    if not elsewhere:
        _check_seen(hidden, reports)
    train = _train_statistics(hidden, reports, columns=columns, draft=draft)
    columns = _with_classes(columns, reports, data, table=origin.table)
    above = f"{draft.name}/" if draft else ""
    kept = {"train": f"{origin.own}/" if origin.own else above, "validation": above}
    shards = {split: _name_shards(hidden, part, kept=kept[split]) for split, part in parts.items()}
    # What attempts left that failed or were overtaken, and the files of sums.
    _remove_others(hidden, {shard.path for both in shards.values() for shard in both})
    stored = [
        replace(
            _stored(hidden, number, column, train, above=above),
            # In the order of partitions: of equal values the first row is named.
            train=sum((report.train.get(column.name, Extremes()) for report in reports), Extremes()),
            validation=sum((report.validation.get(column.name, Extremes()) for report in reports), Extremes()),
            several=origin.several.get(column.name, ""),
        )
        for number, column in enumerate(columns)
    ]
    Manifest(
        columns=tuple(stored),
        inputs=data.input_names,
        targets=data.target_names,
        weight=data.weight,
        train=shards["train"],
        validation=shards["validation"],
        source=origin.source,
        fingerprint=origin.fingerprint,
        seed=origin.seed,
        skipped=damage.rows,
        skipped_examples=damage.examples,
        table=origin.table,
    ).save(hidden)
    _sync_directory(hidden)


def _stored(hidden: Path, number: int, column: Column, train: Statistics, *, above: str) -> StoredColumn:
    """A column with what was counted of it; its mean image is written."""
    counts: list[int] = []
    if column.classes is not None:
        seen = train.counts[column.name].tolist()
        # Classes that no training row has count 0: a net has outputs for them.
        counts = [*seen, *[0] * (column.classes - len(seen))]
    sums = train.sums.get(column.name)
    if sums is None:
        return StoredColumn(column=column, counts=tuple(counts))
    return StoredColumn(
        column=column,
        channel_mean=sums.channel_mean,
        channel_std=sums.channel_std,
        mean_image="" if column.own_size else above + save_mean_image(hidden, number, sums.mean_image),
        counts=tuple(counts),
    )


def publish(hidden: Path, directory: Path) -> None:
    """Give the prepared directory its name, unless somebody else prepared the same meanwhile: theirs is as good.

    Raises:
        OSError: it cannot be renamed.
    """
    try:
        # One step on one file system, and refused where the directory exists and is not empty.
        hidden.rename(directory)
    except OSError as error:
        # File systems differ in which of the two they give.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return
    # The new name is in the parent directory, which has to reach the disk too.
    _sync_directory(directory.parent)


def discard(hidden: Path) -> None:
    """Remove what is left of the hidden directory; after success nothing is.

    Raises:
        DataError: it cannot be removed.
    """
    for _ in range(5):
        if not hidden.exists():
            return
        # A task that is being cancelled may add a file while the directory is emptied: then once more.
        shutil.rmtree(hidden, ignore_errors=True)
    raise DataError(f"{hidden}: cannot be removed; delete it by hand")


def _shards(reports: Sequence[PartitionReport], split: str) -> list[ShardReport]:
    return [shard for report in reports for shard in report.shards if shard.split == split]


def _common_columns(reports: Sequence[PartitionReport]) -> tuple[Column, ...]:
    found = [report.columns for report in reports if report.columns]
    if not found:
        whole = "whole " if any(report.damage.rows for report in reports) else ""
        raise DataError(
            f"the data have no {whole}rows; training needs at least one: check data.path and its filters"
        )
    found = _of_least_size(found)
    for others in found[1:]:
        for here, there in zip(found[0], others, strict=True):
            if here != there:
                raise DataError(
                    f"column {here.name} has rows of shape {here.shape} in one partition and {there.shape} in "
                    "another; all must be of one: correct the rows or set data.shape, for images data.resize (of "
                    "one column among several the same in data.columns)"
                )
    return found[0]


def _of_least_size(found: list[tuple[Column, ...]]) -> list[tuple[Column, ...]]:
    """The same columns, those of images that keep their own sizes with the least of all partitions."""
    least = [
        tuple(min(sides) for sides in zip(*(columns[at].shape for columns in found), strict=True))
        if one.own_size
        else None
        for at, one in enumerate(found[0])
    ]
    return [
        tuple(
            replace(one, shape=(one.shape[0], *shape[1:])) if shape else one
            for one, shape in zip(columns, least, strict=True)
        )
        for columns in found
    ]


def _with_classes(
    columns: tuple[Column, ...], reports: Sequence[PartitionReport], data: Data, *, table: TableEncoding | None
) -> tuple[Column, ...]:
    """The columns with the number of their classes: as set, as many as there are words, or the largest seen."""
    known = table.categories if table else {}
    seen = [
        max(each) for each in zip(*(shard.classes for report in reports for shard in report.shards), strict=True)
    ]
    largest = iter(seen)
    settled: list[Column] = []
    for column in columns:
        if column.classes is None:
            settled.append(column)
            continue
        counted = next(largest)
        named = len(known[column.name].names) if column.name in known else 0
        settled.append(
            replace(column, classes=data.column(column.name).classes or named or column.classes or counted)
        )
    return tuple(settled)


def _remove_others(hidden: Path, named: set[str]) -> None:
    for left in hidden.iterdir():
        if left.name not in named:
            left.unlink(missing_ok=True)  # one that is being written may get its name in this moment


def _empty_remedy(data: Data, split: str) -> str:
    if data.validation_column:
        marks = "false" if split == "train" else "true"
        return f"no row has {data.validation_column} = {marks}: mark some, or set data.validation_fraction"
    if data.validation_path:
        path = data.path if split == "train" else data.validation_path
        return f"{path} has no rows: correct the path"
    return f"validation_fraction is {data.validation_fraction:g} of too few rows: set data.validation_fraction"


def _check_seen(hidden: Path, reports: Sequence[PartitionReport]) -> None:
    missing = [one.name for one in _shards(reports, "train") if not (hidden / one.name).exists()]
    if missing:
        raise DataError(
            f"{hidden.parent}: shard {missing[0]} was written by a worker but is not seen here; a shared disk must "
            "show at once what was written: set data.store to one that does, to a directory of the driver alone or "
            "to s3://"
        )


def _train_statistics(
    hidden: Path, reports: Sequence[PartitionReport], *, columns: tuple[Column, ...], draft: Place | None
) -> Statistics:
    # One after the other, in the order of partitions: floats are added in the same order on every run, and one part
    # is in memory at a time.
    total = Statistics.none(columns)
    for report in reports:
        if not report.sums:
            continue
        path = hidden / report.sums
        if draft is not None:
            path.write_bytes((draft / report.sums).read())
        total += Statistics.load(path, columns)
        if draft is not None:
            (draft / report.sums).delete()
    return total


def _name_shards(hidden: Path, part: list[ShardReport], *, kept: str) -> tuple[Shard, ...]:
    """The shards by number, or where they lie elsewhere, `kept` and the name that they have there."""
    # In the order of partitions, so that the same rows have the same numbers in training, whichever attempt wrote
    # them.
    shards: list[Shard] = []
    for number, report in enumerate(part):
        name = f"{kept}{report.name}" if kept else f"{report.split}-{number:05d}.arrow"
        if not kept:
            (hidden / report.name).rename(hidden / name)
        shards.append(Shard(path=name, rows=report.rows, bytes=report.bytes, sha256=report.sha256))
    return tuple(shards)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
