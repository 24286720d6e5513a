"""Where the shards of a run lie, and how tasks reach them: found out, and not asked for.

A store is an object store or HDFS, which every worker reaches; a directory that the workers see, in which they read
and write themselves; or one that they do not see, of the driver's disk alone, whose files go through its service.
"""

import functools
import secrets
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.utils import is_remote

from sparknet.config import RunConfig
from sparknet.data.shards.delivery import Delivery
from sparknet.data.shards.host_cache import CachePlace
from sparknet.data.shards.shard_files import Reach, StoredFiles, sees
from sparknet.data.storage.place import LOCAL, Place, Storage
from sparknet.errors import DataError
from sparknet.spark.jobs.driver_files import DriverFiles
from sparknet.spark.jobs.file_service import FileService
from sparknet.spark.jobs.jobs import collect_reports, numbered, stay
from sparknet.spark.jobs.ports import DriverAddress, DriverHost, read_tls
from sparknet.spark.jobs.settings import is_local

__all__ = ["Store", "open_store"]

_SMALL_BYTES = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """A store as a run has found it."""

    place: Place
    """The directory."""
    cache: CachePlace = field(default_factory=CachePlace)
    """Where hosts keep copies of what they fetch."""
    service: DriverAddress | None = None
    """Through which those reach a directory of the driver's who do not see it; None: everybody sees it."""
    mark: str = ""
    """A file of such a directory, by which they see that they do."""
    fetched: bool = False
    """The workers have to fetch shards, or some of them."""

    @classmethod
    def at(cls, path: Path) -> "Store":
        """A directory that everybody sees."""
        return cls(place=LOCAL.place(str(path)))

    def reach(self, name: str) -> Reach | None:
        """How workers reach the shards of the prepared directory of this name."""
        if self.place.local is None:
            return Reach(source=StoredFiles(directory=self.place / name), cache=self.cache)
        if self.service is None:
            return None
        source = DriverFiles(address=self.service, directory=name)
        return Reach(source=source, cache=self.cache, mark=self.mark)

    def delivery(self, name: str) -> Delivery | None:
        """How those hand over the files of a directory of the driver's who do not see it."""
        return DriverFiles(address=self.service, directory=name) if self.service else None

    def deals_by_shard(self, shard_bytes: int) -> bool:
        """Whether each worker should read few of the shards in an epoch, which have so many bytes in all.

        A host soon has a copy of all of a small data set, whose rows are better mixed with all others.
        """
        most = _SMALL_BYTES
        if self.cache.gigabytes is not None:
            most = min(most, self.cache.gigabytes * 1e9 / 2)
        return self.fetched and shard_bytes > most


@contextmanager
def open_store(
    spark: SparkSession, where: str, config: RunConfig, *, at: DriverHost, note: Callable[[str], None]
) -> Generator[Store]:
    """Find out how the workers reach a store, and serve it to them while the block runs where they do not see it.

    Args:
        spark: asks the workers.
        where: a path or URI; a directory is made.
        config: where copies are kept, how many workers there are, and how they reach the driver.
        at: where the driver's own port is; the store's is beside it.
        note: is told, once, that shards go through the driver.

    Raises:
        DataError: the store cannot be written, or is no place for files.
        ClusterError: the workers cannot be asked, or the service cannot listen.
    """
    data = config.data
    place = Storage(s3_endpoint=data.s3_endpoint).place(where)
    cache = CachePlace(directory=data.cache, gigabytes=data.cache_gigabytes)
    if place.local is None:
        yield Store(place=place, cache=cache, fetched=True)
        return
    # The tasks of such a session are processes of this machine.
    master = "" if is_remote() else spark.conf.get("spark.master", "") or ""
    if is_local(master):
        yield Store(place=place, cache=cache)
        return
    with _marked(place.local) as mark:
        tasks = config.run.workers
        look = functools.partial(look_for, mark)
        reports = collect_reports(
            numbered(spark, tasks, tasks=tasks),
            look,
            doing="looking for the store",
            limit_seconds=config.cluster.start_seconds,
        )
        shared = all(report.values["seen"] for report in reports)
        # Where each host has its own rows, only what all of them need, which is little, goes that way.
        if not shared and not data.on_hosts:
            note(
                f"data.store {place} is not shared with the workers: shards go through the driver; slower than a "
                "shared directory or s3://"
            )
        token, tls = secrets.token_urlsafe(32), read_tls(config.cluster)
        # Also where those that were asked see it: one that comes later need not.
        with FileService(place.local, at=at.beside(), token=token, tls=tls) as service:
            address = DriverAddress(uri=service.address, token=token, tls_roots=tls[0] if tls else b"")
            yield Store(place=place, cache=cache, service=address, mark=mark, fetched=not shared)


def look_for(mark: str, batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """A task: says whether it sees a file."""
    for _ in batches:
        pass
    stay()
    yield {"seen": sees(mark)}


@contextmanager
def _marked(store: Path) -> Generator[str]:
    """A file in the store for a while, which is made if needed."""
    # A name that no other machine's directory has.
    mark = store / f".seen-{secrets.token_hex(16)}"
    try:
        store.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise DataError(
            f"{store}: the store cannot be written: {error.strerror or error}; set data.store to a directory that "
            "can"
        ) from error
    try:
        yield str(mark)
    finally:
        mark.unlink(missing_ok=True)
