"""Sources of which each host has files of its own: looked at, read and kept where they lie.

Three jobs, each of as many tasks as the run will have workers, all at once, so that they are where workers will be.
The tasks of one host find each other by files that they make in the store's directory there: a name or an address
says less, since hosts may be containers of one machine. Hosts that share that directory count as one.
"""

import secrets
import shutil
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark import BarrierTaskContext
from pyspark.sql import SparkSession

from sparknet.config import Data, decode, encode
from sparknet.data.rows.columns import ImageHeader
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.shards.manifest import Manifest
from sparknet.data.shards.prepared import is_here
from sparknet.data.shards.shard import Shard
from sparknet.data.shards.shard_files import sees
from sparknet.data.shards.write_partition import PartitionPlan, PartitionReport, write_partition
from sparknet.data.sources.files import Location
from sparknet.data.sources.opening import OpenedSource, OpenedSources, open_sources
from sparknet.data.sources.registry import find_format
from sparknet.data.sources.source import Source
from sparknet.data.storage.fingerprint import describe_files, fingerprint
from sparknet.errors import ClusterError, DataError, SparkNetError
from sparknet.spark.frames.input_partitions import as_read
from sparknet.spark.jobs.jobs import Report, Task, collect_reports, numbered

__all__ = ["Hosts", "check_shards", "look", "own_directory", "removed_if_failed", "write_shards"]

_SECONDS = 300.0
"""How long a job may take that reads no rows: it waits for as many free cores as there are workers."""
_STRIDE = 1_000_000
"""More partitions than a host has: those of the next one are numbered from its multiple on."""
_REMEDY = "with data.on_hosts every host has files there: give it some, or keep Spark from using it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hosts:
    """What the hosts have."""

    listings: tuple[str, ...]
    """Digest of each host's files, sorted: equal for equal files."""
    sources: OpenedSources
    """What the rows of all are, without the files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Side:
    """What a host says of its training or validation rows."""

    schema: RowSchema
    header: ImageHeader | None = None
    """Of the first whole image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Look:
    """What a task has found."""

    host: str
    leader: int
    """The least slot of those on its host."""
    error: str = ""
    """Why there is nothing else."""
    listing: str = ""
    sides: tuple[_Side, ...] = ()


def look(spark: SparkSession, data: Data, store: str, *, workers: int) -> Hosts:
    """Ask the hosts what they have under `data.path`.

    Args:
        spark: the session.
        data: the source; `on_hosts` is set.
        store: directory of each host, which is made if needed.
        workers: how many tasks are asked at once.

    Raises:
        DataError: a host has no files, or they are damaged, or unlike those of another.
        ClusterError: fewer cores are free than there are workers.
    """
    find_format(data)
    reports = _ask(spark, partial(_look, data, store), workers=workers, doing="looking at the hosts' files")
    found = [decode(_Look, report.values) for report in reports]
    for one in found:
        if one.error:
            raise DataError(f"host {one.host}: {one.error}; {_REMEDY}")
    # The same one whatever the slots: images may be of several sizes, and one of them stands for all.
    first = min(found, key=lambda one: one.listing)
    for one in found:
        same = found[one.leader]
        if one.listing != same.listing:
            raise DataError(
                f"data.store {store} is shared by hosts {same.host} and {one.host}, which have different "
                f"files under {data.path}; with data.on_hosts it lies on a disk of each host: name such a directory"
            )
        if [side.schema for side in one.sides] != [side.schema for side in first.sides]:
            raise DataError(
                f"{data.path}: host {first.host} has {_told(first)}, and host {one.host} has {_told(one)}; all "
                "rows must be of one kind: write the files of one of them anew"
            )
    form = find_format(data)
    sides = [
        OpenedSource(
            format=form,
            where=Location(path=path, columns=data.column_names),
            source=Source(schema=side.schema, files=(), header=side.header, cut=list),
        )
        for side, path in zip(first.sides, (data.path, data.validation_path), strict=False)
    ]
    return Hosts(
        listings=tuple(sorted(one.listing for slot, one in enumerate(found) if one.leader == slot)),
        sources=OpenedSources(train=sides[0], validation=sides[1] if len(sides) > 1 else None),
    )


def write_shards(
    spark: SparkSession, data: Data, plan: PartitionPlan, hosts: Hosts, *, store: str, workers: int
) -> list[PartitionReport]:
    """Have each host's tasks read its files; training shards stay in `plan.own`, others go where the plan says.

    Raises:
        DataError: a file or row is at fault.
        ClusterError: the hosts, or their files, are others than those that were looked at.
    """
    task = partial(_write, data, plan, hosts.listings, store)
    reports = collect_reports(
        numbered(spark, workers, tasks=workers), task, doing="preparing the data", at_once=True
    )
    wrote: list[PartitionReport] = []
    listings: list[str] = []
    for report in reports:
        if report.values["leads"]:
            listings.append(report.values["listing"])
        wrote += [decode(PartitionReport, one) for one in report.values["wrote"]]
    if tuple(sorted(listings)) != hosts.listings:
        raise ClusterError(
            f"{len(listings)} hosts read their files, and {len(hosts.listings)} were looked at before; Spark must "
            "use the same hosts: give it as many cores as there are workers"
        )
    return sorted(wrote, key=lambda one: one.partition)


def check_shards(spark: SparkSession, manifest: Manifest, own: Path, *, store: str, workers: int) -> None:
    """Refuse training shards that are not where they were made; what is there of no manifest is removed.

    Raises:
        DataError: some are missing.
        ClusterError: fewer cores are free than there are workers.
    """
    names = tuple(manifest.train)
    reports = _ask(
        spark, partial(_check, names, own, store), workers=workers, doing="looking for the hosts' shards"
    )
    found = {index for report in reports for index in report.values["found"]}
    missing = [shard.path for index, shard in enumerate(names) if index not in found]
    if missing:
        hosts = ", ".join(sorted({report.host for report in reports}))
        raise DataError(
            f"{len(missing)} of {len(names)} training shards, {missing[0]} first, are in {own} of none of "
            f"{hosts}; they are needed where they were made: delete {store}/{own.name.removeprefix(_OWN)} on the "
            "driver to prepare the data again"
        )


@contextmanager
def removed_if_failed(spark: SparkSession, own: Path, *, store: str, workers: int) -> Generator[None]:
    """Remove what a preparation has left in `own` on the hosts, if the block fails."""
    try:
        yield
    except BaseException as error:  # an interrupt, or a full disk of the driver's, leaves as much
        try:
            _ask(spark, partial(_remove, own, store), workers=workers, doing="removing what was left on the hosts")
        except SparkNetError as left:
            error.add_note(f"{own} is left on the hosts: {left}")
        raise


_OWN = "own-"
"""Begins the name of the directory of a host's own shards, before that of the prepared directory."""


def own_directory(store: str, name: str) -> Path:
    """Where hosts keep the training shards of the prepared directory of this name."""
    return Path(store) / f"{_OWN}{name}"


def _ask(spark: SparkSession, task: Task, *, workers: int, doing: str) -> list[Report]:
    frame = numbered(spark, workers, tasks=workers)
    return collect_reports(frame, task, doing=doing, limit_seconds=_SECONDS, at_once=True)


def _told(found: _Look) -> str:
    columns = ", ".join(column.told for column in found.sides[0].schema.columns)
    names = found.sides[0].schema.class_names
    return f"{columns}, {len(names)} classes ({', '.join(names[:5])}, ...)" if names else columns


# -- the tasks --


def _company(store: str) -> tuple[int, tuple[int, ...]]:
    """This task's slot, and the slots of all tasks on its host. All tasks of the job call it, once.

    Raises:
        DataError: the store's directory cannot be made or written.
    """
    context = BarrierTaskContext.get()
    slot = context.partitionId()
    mark, failed = Path(store) / f".host-{secrets.token_hex(16)}", ""
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:  # raised below: the others wait for this task
        failed = error.strerror or str(error)
    try:
        marks = context.allGather(str(mark))
        seen = tuple(at for at, one in enumerate(marks) if sees(one))
        context.barrier()  # all have looked
    finally:
        if not failed:
            mark.unlink(missing_ok=True)
    if failed:
        raise DataError(
            f"{store}: cannot be written on host {socket.gethostname()}: {failed}; set data.store to a directory "
            "that each host can write"
        )
    return slot, seen


def _opened(data: Data) -> tuple[OpenedSources, str]:
    """The files of this host, and their digest."""
    sources = open_sources(data)
    return sources, fingerprint({"sides": [describe_files(side.listed.files) for side in sources.sides]})


def _look(data: Data, store: str, batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for _ in batches:
        pass
    _, seen = _company(store)
    host = socket.gethostname()
    try:
        sources, listing = _opened(data)
        sides = tuple(
            _Side(schema=side.listed.schema, header=side.first_header if side.listed.schema.encoded else None)
            for side in sources.sides
        )
    except SparkNetError as error:  # told with the host's name
        yield encode(_Look(host=host, leader=seen[0], error=str(error)))
        return
    yield encode(_Look(host=host, leader=seen[0], listing=listing, sides=sides))


def _write(
    data: Data, plan: PartitionPlan, listings: Sequence[str], store: str, batches: Iterator[pa.RecordBatch]
) -> Iterator[dict[str, Any]]:
    for _ in batches:
        pass
    slot, seen = _company(store)
    sources, listing = _opened(data)
    if listing not in listings:
        raise ClusterError(
            f"host {socket.gethostname()} has other files under {data.path} than when it was looked at: begin "
            "again, with as many cores as there are workers"
        )
    Path(plan.own).mkdir(parents=True, exist_ok=True)
    first = _STRIDE * listings.index(listing)
    training = len(sources.train.listed.partitions)
    parts = [(side, part) for side in sources.sides for part in side.listed.partitions]
    wrote: list[dict[str, Any]] = []
    # The tasks of a host take turns.
    for number in range(seen.index(slot), len(parts), len(seen)):
        side, part = parts[number]
        mark = number >= training if plan.rows.validation else None
        rows = (as_read(plan.rows, batch, mark=mark) for batch in side.reader.read(part, side.where.storage))
        report = write_partition(plan, rows, partition=first + number)
        if report:
            wrote.append(encode(report))
    yield {"leads": slot == seen[0], "listing": listing, "wrote": wrote}


def _check(
    shards: tuple[Shard, ...], own: Path, store: str, batches: Iterator[pa.RecordBatch]
) -> Iterator[dict[str, Any]]:
    for _ in batches:
        pass
    slot, seen = _company(store)
    found = [index for index, shard in enumerate(shards) if is_here(str(own), shard)]
    if slot == seen[0]:
        _remove_unnamed(own, {shard.path for shard in shards})
    yield {"found": found}


def _remove_unnamed(own: Path, named: set[str]) -> None:
    """Remove what attempts left that failed or were overtaken, of the preparation that the manifest names."""
    # Another preparation of the same may be going on: its directory is left alone.
    for directory in {(own / name).parent for name in named}:
        for file in directory.iterdir() if directory.is_dir() else ():
            if f"{directory.name}/{file.name}" not in named:
                file.unlink(missing_ok=True)


def _remove(own: Path, store: str, batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for _ in batches:
        pass
    slot, seen = _company(store)
    if slot == seen[0] and own.is_dir():
        shutil.rmtree(own)
    yield {}
