"""Any DataFrame becomes shards and a manifest in the store: one Spark job, once for the same data.

The shards are written into a hidden directory beside the final one, which appears complete or not at all.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, Row, SparkSession

from sparknet.config import Data, decode, encode
from sparknet.data.rows.columns import ImageForm
from sparknet.data.rows.inputs import Damage, InputPlan
from sparknet.data.rows.table_encoding import TableEncoding
from sparknet.data.shards.manifest import FORMAT_VERSION, Manifest
from sparknet.data.shards.publish import Origin, assemble, discard, publish
from sparknet.data.shards.write_partition import PartitionPlan, PartitionReport, write_partition
from sparknet.data.storage.fingerprint import describe_files, fingerprint
from sparknet.errors import DataError
from sparknet.spark.frames.read_source import FORMATS, locate, read_source, source_files
from sparknet.spark.frames.select_columns import describe_file_source, describe_frame, select_columns
from sparknet.spark.frames.vocabulary import learn
from sparknet.spark.jobs.error_translation import spark_errors
from sparknet.spark.jobs.jobs import run_job

__all__ = ["image_form", "prepare", "prepare_frame"]

_Frames = tuple[DataFrame, DataFrame | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """One preparation, as asked for."""

    spark: SparkSession
    data: Data
    store: Path
    seed: int
    workers: int
    source: dict[str, Any]
    """For people, in the manifest."""
    identity: Any
    """What the rows are, as JSON values: equal for equal rows."""
    form: ImageForm | None
    """How images become pixels; None where the source's bytes are pixels."""
    frames: Callable[[], _Frames]
    """Opens all or the training rows, and the validation rows if they are a second source."""


def prepare(spark: SparkSession, data: Data, *, store: Path, seed: int, workers: int = 1) -> tuple[Path, Manifest]:
    """Turn the source that `data` names into shards, unless that was done before.

    The same is: the same files (name, size, time of change), the same columns, shape, classes, form of images,
    split and shard size, and for a drawn split the same seed.

    Args:
        spark: runs the job.
        data: the source, its columns and the split.
        store: directory that the driver and every worker reach; it is made if needed.
        seed: draws the validation rows of `data.validation_fraction`.
        workers: refuse data with fewer training rows than this.

    Returns:
        The directory `store/<first 16 digits of the fingerprint>` and its manifest, which says how many damaged
        rows were left out.

    Raises:
        DataError: the source, a row, the split or the store is at fault, or more than `data.corrupt_share` of the
            rows are damaged; nothing is left in the store.
        MissingDependency: the source needs a package that is not installed.
        ClusterError: the Spark job failed.
    """
    source = FORMATS.get(data.source)
    second = bool(data.validation_path)

    def frames() -> _Frames:
        train = read_source(spark, data, validation=False)
        return train, read_source(spark, data, validation=True) if second else None

    with spark_errors(f"reading {data.path or data.source}"):
        form: ImageForm | None = _form(data)
        if source:
            rows = source.describe(locate(data, validation=False))
            form = form if rows.encoded else None
            if second and rows.encoded != source.describe(locate(data, validation=True)).encoded:
                files, pixels = (data.path, data.validation_path)[:: 1 if rows.encoded else -1]
                raise DataError(
                    f"{files} holds encoded images and {pixels} pixels; both must be of one kind: write one of "
                    "them anew with sparknet data to-lmdb"
                )
            data = replace(data, shape=data.shape or rows.input.shape, classes=data.classes or rows.classes)
            sides = [describe_files(source_files(data, validation=side)) for side in (False, True)[: 1 + second]]
        else:
            opened = frames()
            sides = [describe_file_source(frame) for frame in opened if frame is not None]
            frames = lambda: opened  # noqa: E731 - Spark has listed the files and inferred the schema
    return _prepared(
        _Task(
            spark=spark,
            data=data,
            store=store,
            seed=seed,
            workers=workers,
            source={"source": data.source, "path": data.path, "validation_path": data.validation_path},
            identity={"source": data.source, "files": sides},
            form=form,
            frames=frames,
        )
    )


def prepare_frame(
    spark: SparkSession, frame: DataFrame, data: Data, *, store: Path, seed: int, workers: int = 1
) -> tuple[Path, Manifest]:
    """Turn the rows of any DataFrame into shards, as `prepare` does; `data.path` plays no part.

    The frame is known again within its Spark application only. Its columns `name` and `error` tell of damaged rows
    where `data.source` is of a kind that reads on after them.

    Raises:
        DataError: as for `prepare`; also for `data.validation_path`, since a frame has no second source.
        ClusterError: the Spark job failed.
    """
    if data.validation_path:
        raise DataError(
            f"data.validation_path is {data.validation_path!r}; a DataFrame marks or draws its validation rows: "
            "set data.validation_column or data.validation_fraction"
        )
    with spark_errors("reading the DataFrame"):
        identity = describe_frame(frame)
    return _prepared(
        _Task(
            spark=spark,
            data=data,
            store=store,
            seed=seed,
            workers=workers,
            source={"source": "DataFrame", "schema": frame.schema.simpleString()},
            identity=identity,
            form=_form(data),
            frames=lambda: (frame, None),
        )
    )


def image_form(data: Data, *, validation: bool) -> ImageForm | None:
    """How a source's images become pixels; None where its bytes are pixels already.

    Args:
        data: the source.
        validation: of `data.validation_path` instead of `data.path`.

    Raises:
        DataError: the source is missing or damaged.
    """
    source = FORMATS.get(data.source)
    if source and not source.describe(locate(data, validation=validation)).encoded:
        return None
    return _form(data)


def _form(data: Data) -> ImageForm | None:
    if data.features:
        return None  # they are numbers and words
    return ImageForm(order=data.channel_order or "rgb", resize_mode=data.resize_mode)


def _prepared(task: _Task) -> tuple[Path, Manifest]:
    _check_store(task.data.store)
    digest = _digest(task)
    directory = task.store / digest[:16]
    if not directory.exists():
        _make(task, directory, digest=digest)
    manifest = Manifest.load(directory)
    if manifest.fingerprint != digest:
        raise DataError(
            f"{directory}: holds data with fingerprint {manifest.fingerprint}, not {digest}: "
            f"delete {directory} to prepare the data again"
        )
    # They may have been prepared when more was allowed.
    damage = Damage(rows=manifest.skipped, examples=manifest.skipped_examples)
    damage.check(manifest.train_rows + manifest.validation_rows + damage.rows, share=task.data.corrupt_share)
    manifest.train_table(directory).verify()
    manifest.validation_table(directory).verify()
    if manifest.train_rows < task.workers:
        raise DataError(
            f"{manifest.train_rows} training rows for {task.workers} workers; each needs at least one: set "
            "run.workers to a smaller number"
        )
    return directory, manifest


def _check_store(store: str) -> None:
    if "://" in store or store.startswith("file:"):
        raise DataError(
            f"data.store is {store!r}; shards are mapped into memory from files: set data.store to the path of a "
            "directory that all workers reach, on this machine or a shared file system"
        )


def _digest(task: _Task) -> str:
    data = task.data
    return fingerprint(
        {
            "version": FORMAT_VERSION,
            "identity": task.identity,
            "endpoint": data.s3_endpoint,
            "labels": [data.labels, data.validation_labels],
            "header": data.header,
            "columns": [data.image, data.features, data.label, data.validation_column],
            "shape": data.shape,
            "classes": data.classes,
            "images": [encode(task.form), data.resize, data.keep] if task.form else None,
            "fraction": data.validation_fraction,
            "seed": _split_seed(task),
            "shard_megabytes": data.shard_megabytes,
        }
    )


def _split_seed(task: _Task) -> int:
    """The seed where it decides anything: another seed must not cost another preparation otherwise."""
    return task.seed if task.data.validation_fraction else 0


def _make(task: _Task, directory: Path, *, digest: str) -> None:
    hidden = task.store / f".preparing-{directory.name}-{uuid.uuid4().hex}"
    try:
        hidden.mkdir(parents=True)
    except OSError as error:
        raise DataError(
            f"{task.store}: the store cannot be written: {error}; set data.store to a directory that can"
        ) from error
    try:
        reports, table = _run_job(task, hidden)
        origin = Origin(source=task.source, fingerprint=digest, seed=_split_seed(task), table=table)
        assemble(hidden, reports, task.data, origin=origin)
        publish(hidden, directory)
    except OSError as error:
        raise DataError(
            f"{task.store}: the store cannot be written: {error}; free space or set data.store"
        ) from error
    finally:
        discard(hidden)


def _run_job(task: _Task, hidden: Path) -> tuple[list[PartitionReport], TableEncoding | None]:
    """Write the shards; what became of each partition, in order, and what was learned of a table."""
    data, doing = task.data, "preparing the data"
    plan = _plan(task, hidden)
    with spark_errors(doing):
        train, validation = run_job(task.spark, task.frames, doing=doing)
        table = learn(train, data)

        def collect() -> list[Row]:
            selected = select_columns(train, data, validation=validation, table=table)
            return selected.mapInArrow(partial(_write_shards, plan), "report string").collect()

        rows = run_job(task.spark, collect, doing=doing)
    reports = [decode(PartitionReport, json.loads(row.report)) for row in rows]
    return sorted(reports, key=lambda report: report.partition), table


def _plan(task: _Task, hidden: Path) -> PartitionPlan:
    data = task.data
    return PartitionPlan(
        directory=str(hidden.absolute()),
        input=InputPlan(
            name=data.image,
            shape=data.shape,
            form=task.form,
            resize=data.resize,
            threads=data.threads,
        ),
        label=data.label,
        validation=data.validation_column or data.validation_path,
        keep=data.keep,
        classes=data.classes,
        fraction=data.validation_fraction,
        seed=task.seed,
        shard_bytes=int(data.shard_megabytes * 1e6),
    )


def _write_shards(plan: PartitionPlan, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The task: runs in a Python worker, once for each partition."""
    context = TaskContext.get()
    assert context is not None, "Spark runs this in a task"
    report = write_partition(plan, batches, partition=context.partitionId())
    if report:
        yield pa.record_batch({"report": [json.dumps(encode(report))]})
