"""Rows become shards and a manifest in the store: one Spark job, once for the same data.

The shards are written into a hidden directory beside the final one, which appears complete or not at all.
"""

import logging
import uuid
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession

from sparknet.config import Data, TestRows, decode, encode
from sparknet.data.rows.column_plan import ColumnPlan
from sparknet.data.rows.damage import Damage
from sparknet.data.rows.table_encoding import TableEncoding
from sparknet.data.shards.delivery import Delivery, Uploads, temporary_directory
from sparknet.data.shards.manifest import FORMAT_VERSION, Manifest
from sparknet.data.shards.prepared import Part, PreparedData, PreparedTest
from sparknet.data.shards.publish import Origin, assemble, discard, publish, several_sizes
from sparknet.data.shards.remote_store import is_prepared, names_draft, publish_remotely, sweep, verify_remotely
from sparknet.data.shards.write_partition import PartitionPlan, PartitionReport, write_partition
from sparknet.data.sources.opening import DATA_FRAME, OpenedSource, OpenedSources, data_of_parts, open_sources
from sparknet.data.sources.registry import find_format
from sparknet.data.storage.fingerprint import describe_files, fingerprint
from sparknet.data.storage.place import Place
from sparknet.errors import ConfigError, DataError
from sparknet.spark.frames.input_partitions import PartitionReader, as_read, numbers_in, partition_numbers
from sparknet.spark.frames.read_source import read_source
from sparknet.spark.frames.select_columns import describe_file_source, describe_frame, select_columns
from sparknet.spark.frames.vocabulary import learn
from sparknet.spark.jobs.error_translation import spark_errors
from sparknet.spark.jobs.jobs import collect_reports, run_job
from sparknet.spark.preparing.hosts import (
    Hosts,
    check_shards,
    look,
    own_directory,
    removed_if_failed,
    write_shards,
)
from sparknet.spark.preparing.store import Store

__all__ = ["Frames", "prepare", "prepare_frames", "prepare_run"]

_LOG = logging.getLogger(__name__)
_DOING = "preparing the data"


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """Rows that come as DataFrames."""

    train: DataFrame
    """All or the training rows."""
    validation: DataFrame | None = None
    """The validation rows, if they are a second source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Preparation:
    """One preparation, as asked for."""

    spark: SparkSession
    data: Data
    store: Store
    seed: int
    workers: int
    source: dict[str, Any]
    """For people, in the manifest."""
    identity: Any
    """What the rows are, as JSON values: equal for equal rows."""
    opened: OpenedSource
    """Says how the input column is read."""
    rows: OpenedSources | Frames
    """Where the rows come from: partitions that the tasks read themselves, or DataFrames."""
    hosts: Hosts | None = None
    """Each host has files of its own, which its tasks read."""


def prepare(
    spark: SparkSession,
    data: Data,
    *,
    store: Store | Path,
    seed: int,
    workers: int = 1,
    sources: OpenedSources | None = None,
) -> tuple[Path | Place, Manifest]:
    """Turn the source that `data` names into shards, unless that was done before.

    The same is: the same files (name, size, time of change), the same columns, shape, classes, form of images,
    split and shard size, and for a drawn split the same seed.

    Args:
        spark: runs the job.
        data: the source, its columns and the split.
        store: where the shards are to lie; a path: a directory that everybody sees, which is made if needed.
        seed: draws the validation rows of `data.validation_fraction`.
        workers: refuse data with fewer training rows than this.
        sources: what `data` names, if it is open already; not given: it is opened.

    Returns:
        The directory `store/<first 16 digits of the fingerprint>` and its manifest, which says how many damaged
        rows were left out.

    Raises:
        DataError: the source, a row, the split or the store is at fault, or more than `data.corrupt_share` of the
            rows are damaged; nothing is left in the store.
        MissingDependency: the source needs a package that is not installed.
        ClusterError: the Spark job failed.
    """
    part, manifest = _prepare_source(spark, data, store=_store(store), seed=seed, workers=workers, sources=sources)
    return part.place.local or part.place, manifest


def _store(store: Store | Path) -> Store:
    return store if isinstance(store, Store) else Store.at(store)


def _prepare_source(
    spark: SparkSession, data: Data, *, store: Store, seed: int, workers: int, sources: OpenedSources | None
) -> tuple[Part, Manifest]:
    """As `prepare`; gives what a worker must know to read it, but for the names of columns."""
    hosts = look(spark, data, str(store.place), workers=workers) if data.on_hosts else None
    sources = hosts.sources if hosts else sources or open_sources(data)
    opened = sources.train
    files: list[Any]
    notes: list[str] = []
    if opened.source and not opened.format.has_columns:
        rows: OpenedSources | Frames = sources
        files = [describe_files(side.listed.files) for side in sources.sides]
    else:
        with spark_errors(f"reading {data.path}"):
            # In a thread that Ctrl-C does not cut: Spark lists the files and infers the schema, by jobs of its own.
            frames = run_job(
                spark,
                lambda: [read_source(spark, side, data, tell=notes.append) for side in sources.sides],
                doing=_DOING,
            )
            rows = Frames(train=frames[0], validation=frames[1] if sources.validation else None)
            files = [
                describe_files(side.source.files) if side.source else describe_file_source(frame)
                for side, frame in zip(sources.sides, frames, strict=True)
            ]
    part, manifest = _prepared(
        _Preparation(
            spark=spark,
            data=data,
            store=store,
            seed=seed,
            workers=workers,
            source={"source": data.source, "path": data.path, "validation_path": data.validation_path},
            identity={"source": data.source, **({"hosts": hosts.listings} if hosts else {"files": files})},
            opened=opened,
            rows=rows,
            hosts=hosts,
        )
    )
    return replace(part, notes=tuple(dict.fromkeys(notes))), manifest


def prepare_run(
    spark: SparkSession,
    data: Data,
    *,
    store: Store | Path,
    seed: int,
    workers: int = 1,
    sources: OpenedSources | Frames | None = None,
) -> PreparedData:
    """Prepare everything that a run reads: `data.source`, and the sources beside it, each by itself.

    Args:
        spark: runs the jobs.
        data: the sources, their columns and the split.
        store: as for `prepare`.
        seed: as for `prepare`.
        workers: as for `prepare`.
        sources: what `data.source` names, if it is open already; or DataFrames in its place.

    Raises:
        DataError: as for `prepare`; or the sources' rows cannot go together.
        ConfigError: rows that go together are drawn or marked for validation in one of them only.
        ClusterError: a Spark job failed.
    """
    store = _store(store)
    made = _prepare_sources(spark, data, store=store, seed=seed, workers=workers, sources=sources)
    shard_bytes = sum(shard.bytes for manifest in made.manifests for shard in manifest.train)
    made = replace(made, by_shard=not made.on_hosts and store.deals_by_shard(shard_bytes))
    tests = {
        name: _prepare_test(spark, data, rows, name=name, made=made, store=store)
        for name, rows in data.tests.items()
    }
    return replace(made, tests=tests)


def _prepare_test(
    spark: SparkSession, data: Data, rows: TestRows, *, name: str, made: PreparedData, store: Store
) -> PreparedTest:
    """Prepare further rows to measure; `made` is what is prepared already, and may have them."""
    paths = {"": rows.path, **rows.beside}
    if not rows.path or paths == {
        "": data.validation_path,
        **{n: b.validation_path for n, b in data.beside.items()},
    }:
        return PreparedTest(data=made, split="validation")
    # What is trained on is measured as a whole only if nothing of it was held out.
    whole = bool(data.validation_path)
    if whole and paths == {"": data.path, **{n: b.path for n, b in data.beside.items()}}:
        return PreparedTest(data=made, split="train")
    form = find_format(data)
    if form.reader is None or form.names_classes or form.has_label_file:
        raise ConfigError(
            f"data.tests.{name}.path is {rows.path!r}; rows of source {data.source} have classes that the training "
            "rows number, and so cannot be prepared by themselves: leave the path out, or give such rows as "
            "data.validation_path"
        )
    alone = replace(
        data,
        path=rows.path,
        validation_path="",
        validation_labels="",
        validation_column="",
        validation_fraction=0.0,
        validation="none",
        tests={},
        beside={n: replace(one, path=rows.beside[n], validation_path="") for n, one in data.beside.items()},
    )
    found = _prepare_sources(spark, alone, store=store, seed=0, workers=1, sources=None)
    here, there = (one.rows.columns for one in (found, made))
    for column, wanted in zip(here, there, strict=True):
        # A square that is cut out of them makes images of several sizes one.
        axes = 1 if column.own_size or wanted.own_size else None
        if (column.dtype, column.shape[:axes]) != (wanted.dtype, wanted.shape[:axes]):
            raise DataError(
                f"data.tests.{name}: column {column.name} is {column.dtype} of shape {column.shape}, and "
                f"{wanted.dtype} of shape {wanted.shape} in training; both must be alike: give rows of one kind"
            )
    return PreparedTest(data=found, split="train")


def _prepare_sources(
    spark: SparkSession,
    data: Data,
    *,
    store: Store,
    seed: int,
    workers: int,
    sources: OpenedSources | Frames | None,
) -> PreparedData:
    """What is trained on, and what is held out."""
    if isinstance(sources, Frames):
        return PreparedData.alone(*_prepare_frames(spark, sources, data, store=store, seed=seed, workers=workers))
    if not data.beside:
        return PreparedData.alone(
            *_prepare_source(spark, data, store=store, seed=seed, workers=workers, sources=sources)
        )
    if not data.validation_path and data.validation is None:
        raise ConfigError(
            f"data.beside has {', '.join(data.beside)}; validation rows of several sources are given by path: set "
            "data.validation_path, and that of each source beside"
        )
    parts: list[Part] = []
    manifests: list[Manifest] = []
    sources = sources or open_sources(data)
    opened_parts = (sources, *sources.beside.values())
    for (own, names), opened in zip(data_of_parts(data), opened_parts, strict=True):
        part, manifest = _prepare_source(spark, own, store=store, seed=seed, workers=workers, sources=opened)
        parts.append(replace(part, names=names))
        manifests.append(manifest)
    prepared = PreparedData(
        parts=tuple(parts), manifests=tuple(manifests), inputs=data.input_names, targets=data.target_names
    )
    prepared.check()
    return prepared


def prepare_frames(
    spark: SparkSession, frames: Frames, data: Data, *, store: Store | Path, seed: int, workers: int = 1
) -> tuple[Path | Place, Manifest]:
    """Turn the rows of any DataFrames into shards, as `prepare` does; `data.path` plays no part.

    Frames are known again within their Spark application only. Columns `name` and `error` tell of damaged rows
    where `data.source` is of a kind that reads on after them.

    Raises:
        DataError: as for `prepare`; also for `data.validation_path`, unless there is a frame of validation rows.
        ConfigError: `data` names sources, which belong to files.
        ClusterError: the Spark job failed.
    """
    part, manifest = _prepare_frames(spark, frames, data, store=_store(store), seed=seed, workers=workers)
    return part.place.local or part.place, manifest


def _prepare_frames(
    spark: SparkSession, frames: Frames, data: Data, *, store: Store, seed: int, workers: int
) -> tuple[Part, Manifest]:
    """As `prepare_frames`; gives what a worker must know to read it, but for the names of columns."""
    if bool(data.validation_path) != (frames.validation is not None):
        raise DataError(
            f"data.validation_path is {data.validation_path!r}; a DataFrame marks or draws its validation rows, or "
            "a second one has them: set data.validation_column or data.validation_fraction, or give one"
        )
    for key, named in (("beside", data.beside), ("tests", data.tests)):
        if named:
            raise ConfigError(
                f"data.{key} has {', '.join(named)}; these are read from files beside files, and the rows come "
                "from a DataFrame: join them to its columns, or leave it out"
            )
    if data.on_hosts:
        raise ConfigError("data.on_hosts is true; it is of files, and the rows come from a DataFrame: leave it out")
    both = [frame for frame in (frames.train, frames.validation) if frame is not None]
    with spark_errors("reading the DataFrame"):
        identity = [describe_frame(frame) for frame in both]
    return _prepared(
        _Preparation(
            spark=spark,
            data=data,
            store=store,
            seed=seed,
            workers=workers,
            source={"source": "DataFrame", "schema": frames.train.schema.simpleString()},
            identity=identity,
            opened=DATA_FRAME,
            rows=frames,
        )
    )


def _prepared(asked: _Preparation) -> tuple[Part, Manifest]:
    digest = _digest(asked)
    directory = asked.store.place / digest[:16]
    # No lock: two runs may prepare the same at once, each in a hidden directory of its own, and the first to
    # publish wins.
    if not is_prepared(directory):
        if directory.local is not None:
            _make(asked, directory.local, digest=digest)
        else:
            _make_remotely(asked, directory, digest=digest)
    manifest = Manifest.load(directory)
    # The name has a fourth of the digest only, and a directory may have been put there by hand.
    if manifest.fingerprint != digest:
        raise DataError(
            f"{directory}: holds data with fingerprint {manifest.fingerprint}, not {digest}: "
            f"delete {directory} to prepare the data again"
        )
    _check_own_sizes(asked, manifest)
    # They may have been prepared when more was allowed.
    damage = Damage(rows=manifest.skipped, examples=manifest.skipped_examples)
    damage.check(manifest.train_rows + manifest.validation_rows + damage.rows, share=asked.data.corrupt_share)
    own = _verify(asked, directory, manifest)
    if manifest.train_rows < asked.workers:
        raise DataError(
            f"{manifest.train_rows} training rows for {asked.workers} workers; each needs at least one: set "
            "run.workers to a smaller number"
        )
    name, storage = directory.name, directory.storage
    return Part(directory=directory.uri, storage=storage, reach=asked.store.reach(name), own=own), manifest


def _verify(asked: _Preparation, directory: Place, manifest: Manifest) -> str:
    """Look whether all shards are there; where hosts have their own, the directory on each."""
    # Now, and not by a task after an hour: somebody may have deleted a file of a finished preparation.
    if directory.local is None:
        verify_remotely(directory, manifest)
        return ""
    manifest.validation_table(directory.local).verify()
    if asked.hosts is None:
        manifest.train_table(directory.local).verify()
        return ""
    store = str(asked.store.place)
    own = own_directory(store, directory.name)
    check_shards(asked.spark, manifest, own, store=store, workers=asked.workers)
    return str(own)


def _check_own_sizes(asked: _Preparation, manifest: Manifest) -> None:
    """Refuse images of several sizes, prepared for a run that cuts them, where another asks for one size."""
    for stored in manifest.columns:
        name = stored.column.name
        if stored.column.own_size and asked.opened.column_plan(asked.data, name).own_size == "no":
            raise DataError(
                f"column {name}: {stored.several}: set data.resize; or cut a square out of each, with data.crop or "
                "with crop_size in a Caffe net's data layers of both phases, and take no mean image off"
            )


def _digest(asked: _Preparation) -> str:
    data = asked.data
    # Only what decides the shards' bytes: threads, mean or crop may change without another preparation.
    return fingerprint(
        {
            "version": FORMAT_VERSION,
            "identity": asked.identity,
            "endpoint": data.s3_endpoint,
            "header": data.header,
            "columns": [data.input_names, data.target_names, data.weight, data.features, data.validation_column],
            # As read, with what the source itself says: `data.classes = 10` given or known is the same data.
            "plans": [_deciding(asked.opened.column_plan(data, name)) for name in data.column_names],
            "class_values": data.class_values or "mapped",
            "fraction": data.validation_fraction,
            "seed": _split_seed(asked),
            "shard_megabytes": data.shard_megabytes,
            # Keys of these sources alone: others keep the data that are prepared already.
            **({"csv": [data.separator, data.quote, data.nulls, data.words]} if data.source == "csv" else {}),
            **({"windows": [encode(data.windows), data.channel_order or "rgb"]} if data.windows else {}),
        }
    )


def _deciding(plan: ColumnPlan) -> Any:
    """What of a column's plan decides what is stored, as JSON values."""
    # Which square is cut out of images decides nothing: that they are of several sizes is theirs.
    plan = replace(plan, threads=1, own_size="no")
    # Of what are no images, nothing says how images are treated.
    return encode(plan if plan.form else replace(plan, resize=(), keep="pixels"))


def _split_seed(asked: _Preparation) -> int:
    """The seed where it decides anything: another seed must not cost another preparation otherwise."""
    return asked.seed if asked.data.validation_fraction else 0


def _make(asked: _Preparation, directory: Path, *, digest: str) -> None:
    # On the store's own file system, since only there a rename is one step; the name is unique, since a run that
    # was killed leaves its own behind.
    store = directory.parent
    hidden = store / f".preparing-{directory.name}-{uuid.uuid4().hex}"
    try:
        hidden.mkdir(parents=True)
    except OSError as error:
        raise DataError(
            f"{store}: the store cannot be written: {error}; set data.store to a directory that can"
        ) from error
    try:
        where = _Where(
            directory=str(hidden),
            mark=asked.store.mark,
            delivery=asked.store.delivery(hidden.name),
            own=own_directory(str(store), directory.name) / hidden.name[1:] if asked.hosts else None,
        )
        with _tidied(asked, where.own):
            reports, origin = _write_all(asked, where, digest=digest)
            assemble(hidden, reports, asked.data, origin=origin)
        publish(hidden, directory)
    except OSError as error:
        raise DataError(f"{store}: the store cannot be written: {error}; free space or set data.store") from error
    finally:
        discard(hidden)


def _tidied(asked: _Preparation, own: Path | None) -> AbstractContextManager[None]:
    if own is None:
        return nullcontext()
    return removed_if_failed(asked.spark, own, store=str(asked.store.place), workers=asked.workers)


def _make_remotely(asked: _Preparation, directory: Place, *, digest: str) -> None:
    try:
        sweep(asked.store.place)
    except DataError as error:
        # What others left is in nobody's way, and perhaps not ours to remove.
        _LOG.warning("what killed preparations left in %s stays there: %s", asked.store.place, error)
    draft = directory / uuid.uuid4().hex
    published = False
    try:
        reports, origin = _write_all(asked, _Where(delivery=Uploads(directory=draft)), digest=digest)
        with temporary_directory() as hidden:
            assemble(hidden, reports, asked.data, origin=origin, draft=draft)
            published = publish_remotely(hidden, draft)
    except OSError as error:
        raise DataError(
            f"a directory for temporary files cannot be written: {error}; free space or set TMPDIR"
        ) from error
    finally:
        # An interrupt may come when the manifest has been stored, which then names the draft's files.
        if not published and not names_draft(directory, draft.name):
            draft.delete()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Where:
    """Where tasks write, as `PartitionPlan` has it."""

    directory: str = ""
    mark: str = ""
    delivery: Delivery | None = None
    own: Path | None = None


def _write_all(asked: _Preparation, where: _Where, *, digest: str) -> tuple[list[PartitionReport], Origin]:
    """Have the tasks write all shards."""
    several: dict[str, str] = {}
    # Most often once: that images are of several sizes shows only when they are read, and the rows of other
    # preparations, of one size, are read faster.
    while True:
        plan = _plan(asked, where, several)
        reports, table = _run_job(asked, plan)
        found = several_sizes(reports, plan.rows)
        if not found:
            break
        several |= found
    return reports, Origin(
        source=asked.source,
        fingerprint=digest,
        seed=_split_seed(asked),
        table=table,
        several=several,
        own=where.own.name if where.own else "",
    )


def _run_job(asked: _Preparation, plan: PartitionPlan) -> tuple[list[PartitionReport], TableEncoding | None]:
    """Write the shards; what became of each partition, in order, and what was learned of a table."""
    spark, rows, table = asked.spark, asked.rows, None
    if asked.hosts:
        store = str(asked.store.place)
        return write_shards(spark, asked.data, plan, asked.hosts, store=store, workers=asked.workers), None
    with spark_errors(_DOING):
        if isinstance(rows, OpenedSources):
            reader = PartitionReader.of(*rows.sides)
            # The task that reads is the task that writes: rows never pass through the Java machine.
            task = partial(_write_partitions, plan, reader, len(rows.train.listed.partitions))
            frame = partition_numbers(spark, len(reader.partitions))
        else:
            table = learn(rows.train, asked.data)
            task = partial(_write_rows, plan)
            frame = select_columns(rows.train, asked.data, validation=rows.validation, table=table)
    # A task may run more than once: each attempt writes files of its own, and only reported ones are kept.
    found = collect_reports(frame, task, doing=_DOING)
    # By input partition: the order of the shards, and with it of training, does not depend on which task ended
    # first.
    reports = [decode(PartitionReport, report.values) for report in found]
    return sorted(reports, key=lambda report: report.partition), table


def _plan(asked: _Preparation, where: _Where, several: Collection[str]) -> PartitionPlan:
    """What the tasks do; `several` are the columns whose images are known to be of several sizes."""
    data = asked.data
    rows = asked.opened.read_plan(data, validation=data.validation_column or data.validation_path)
    columns = tuple(replace(one, own_size="yes") if one.name in several else one for one in rows.columns)
    return PartitionPlan(
        directory=where.directory,
        mark=where.mark,
        delivery=where.delivery,
        own=str(where.own) if where.own else "",
        rows=replace(rows, columns=columns),
        fraction=data.validation_fraction,
        seed=asked.seed,
        shard_bytes=int(data.shard_megabytes * 1e6),
    )


def _write_partitions(
    plan: PartitionPlan, reader: PartitionReader, training: int, batches: Iterator[pa.RecordBatch]
) -> Iterator[dict[str, Any]]:
    """A task: reads the input partitions whose numbers it is given; those below `training` hold training rows."""
    for number in numbers_in(batches):
        # A second source's partitions follow the first's; a fraction is drawn later, row by row.
        mark = number >= training if plan.rows.validation else None
        rows = (as_read(plan.rows, batch, mark=mark) for batch in reader.rows(number))
        report = write_partition(plan, rows, partition=number)
        if report:
            yield encode(report)


def _write_rows(plan: PartitionPlan, batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """A task: takes the rows that Spark gives it."""
    context = TaskContext.get()
    assert context is not None, "Spark runs this in a task"
    report = write_partition(plan, batches, partition=context.partitionId())
    if report:
        yield encode(report)
