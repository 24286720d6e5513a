"""How a table reaches the files of its shards: where they lie, or as copies in this host's cache."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Protocol

from sparknet.data.shards.host_cache import CacheFull, CachePlace, Held, HostCache
from sparknet.data.shards.shard import Shard
from sparknet.data.storage.place import Place
from sparknet.data.storage.remedies import Outage
from sparknet.data.storage.retry import Patience
from sparknet.errors import ClusterError

__all__ = ["Copies", "FileSource", "InPlace", "Reach", "ShardFiles", "StoredFiles", "files_of", "sees"]

_AT_ONCE = 2
"""Shards that are fetched at once: the checksum of one is taken while the other one arrives."""


_FULL_SECONDS = 20.0
"""So long a full cache is waited for in which nothing changes: evaluations end, and prefetched shards arrive."""
_LOOK_SECONDS = 0.1


class _GivenUp(Exception):
    """Steers: the table was closed."""


class FileSource(Protocol):
    """Gives the files of a prepared directory to those who do not see it; it travels to the workers."""

    def pieces(self, name: str) -> Iterator[bytes | memoryview]:
        """The bytes of a file, in order; `name` is relative to the directory.

        An empty piece says that nothing arrives and it is asked for again: who has given up meanwhile can end.

        Raises:
            ClusterError: an outage lasts too long; another attempt may succeed.
            SparkNetError: it cannot be read.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFiles:
    """The files of a directory of an object store or HDFS."""

    directory: Place

    def pieces(self, name: str) -> Iterator[bytes]:
        """As `FileSource.pieces`; goes on where it broke.

        Raises:
            ClusterError: the store does not answer.
            DataError: it is not there, or access is refused.
        """
        patience, arrived = Patience(), 0
        while True:
            try:
                for piece in (self.directory / name).pieces(arrived):
                    patience.arrived()
                    arrived += len(piece)
                    yield piece
                return
            except Outage as error:
                if not patience.lasts():
                    raise ClusterError(str(error)) from error
                yield b""


class ShardFiles(Protocol):
    """The files of one table's shards; safe for use by several threads."""

    fetched: bool
    """Whether they are copies, of which a table should have no more open than it needs."""
    where: str
    """The prepared directory, for messages."""

    @property
    def arrived(self) -> int:
        """Grows while bytes arrive that somebody waits for."""
        ...

    def path(self, shard: Shard) -> Path:
        """The file, which stays until it is let go.

        Raises:
            DataError: it cannot be had.
        """
        ...

    def let_go(self, shard: Shard) -> None:
        """The file is not used any more."""
        ...

    def expect(self, shards: Sequence[Shard]) -> None:
        """These are wanted next, in this order, and no others."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class InPlace:
    """Files that lie in a directory which this process sees."""

    fetched = False
    arrived = 0

    def __init__(self, directory: Path) -> None:
        self._directory = Path(directory)
        self.where = str(directory)

    def path(self, shard: Shard) -> Path:
        """As `ShardFiles.path`."""
        return self._directory / shard.path

    def let_go(self, shard: Shard) -> None:
        """Nothing was held."""

    def expect(self, shards: Sequence[Shard]) -> None:
        """The system reads ahead itself."""

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """How workers reach the shards of a prepared directory that some of them do not see; it travels to them."""

    source: FileSource
    """Gives the files."""
    cache: CachePlace
    """Where each host keeps copies."""
    mark: str = ""
    """A file of the store: who sees it sees the shards too, and reads them in place; "": nobody does."""


class Copies:
    """Files of which this host keeps copies, fetched when they are wanted or, by a thread, when they are expected.

    Args:
        source: gives the bytes.
        cache: keeps them.
        where: the prepared directory, for messages.
    """

    fetched = True

    def __init__(self, source: FileSource, cache: CachePlace, *, where: str) -> None:
        self.where = where
        self._source = source
        self._cache = HostCache(cache)
        self._lock = Lock()  # guards what follows
        self._given_up = Event()
        self._held: dict[str, Held] = {}
        self._coming: dict[str, Future[None]] = {}
        self._pool: ThreadPoolExecutor | None = None

    @property
    def arrived(self) -> int:
        """As `ShardFiles.arrived`."""
        return self._cache.arrived

    def path(self, shard: Shard) -> Path:
        """As `ShardFiles.path`; waits until it is there.

        Raises:
            SparkNetError: it cannot be had.
        """
        with self._lock:
            coming = self._coming.pop(shard.path, None)
            if shard.path in self._held:
                return self._held[shard.path].path
        # One that has not begun is fetched here: others may be queued before it.
        if coming is not None and not coming.cancel():
            # Whatever came of it: what is not there now is asked for below, and told if it still cannot be had.
            wait([coming])
        held = self._hold(shard)
        with self._lock:
            first = self._held.setdefault(shard.path, held)
        if first is not held:
            held.close()
        return first.path

    def _hold(self, shard: Shard) -> Held:
        """A copy that is needed now: what is only expected gives way, and what others use is waited for a while."""
        in_use: frozenset[str] | None = None
        until = 0.0
        while True:
            try:
                return self._cache.hold(shard, self._fetch)
            except CacheFull as full:
                self._stop_expecting()
                now = time.monotonic()
                # Others wait for this process in an exchange, and so never let go of what they train on: then no
                # time helps.
                if full.coming or full.in_use != in_use:
                    in_use, until = full.in_use, now + _FULL_SECONDS
                if now >= until:
                    raise
                time.sleep(_LOOK_SECONDS)  # a lock on one of many files: nobody tells which is let go of first

    def _stop_expecting(self) -> None:
        """Give up what is being fetched ahead."""
        with self._lock:
            coming, self._coming = self._coming, {}
            self._given_up.set()
            self._given_up = Event()
        for one in coming.values():
            one.cancel()

    def let_go(self, shard: Shard) -> None:
        """As `ShardFiles.let_go`: the cache may remove it."""
        with self._lock:
            held = self._held.pop(shard.path, None)
        if held is not None:
            held.close()

    def expect(self, shards: Sequence[Shard]) -> None:
        """As `ShardFiles.expect`: they are fetched in this order, and held by nobody until they are wanted."""
        wanted = {shard.path: shard for shard in shards}
        with self._lock:
            for name in [name for name in self._coming if name not in wanted]:
                self._coming.pop(name).cancel()
            for name, shard in wanted.items():
                if name in self._held or (name in self._coming and not self._coming[name].done()):
                    continue
                # Made when first needed: threads do not survive a fork.
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sparknet-fetch")
                self._coming[name] = self._pool.submit(self._have, shard, self._given_up)

    def close(self) -> None:
        """Let go of all copies, and end the threads: what they are fetching is given up."""
        with self._lock:
            pool, self._pool = self._pool, None
            held, self._held, self._coming = self._held, {}, {}
            self._given_up.set()
            self._given_up = Event()  # those who read on after this begin anew
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        for one in held.values():
            one.close()

    def _have(self, shard: Shard, given_up: Event) -> None:
        def fetch(shard: Shard) -> Iterator[bytes | memoryview]:
            for piece in self._fetch(shard):
                if given_up.is_set():
                    raise _GivenUp
                yield piece

        # Others need the room now, or nobody wants it any more: whoever does asks again.
        with suppress(CacheFull, _GivenUp):
            self._cache.hold(shard, fetch).close()

    def _fetch(self, shard: Shard) -> Iterator[bytes | memoryview]:
        return self._source.pieces(shard.path)


def files_of(directory: str, reach: Reach | None) -> ShardFiles:
    """The shards' files of a prepared directory, as this process reaches them.

    Args:
        directory: a path or, where there is a reach without a mark, a URI.
        reach: None: the directory is seen.

    Raises:
        DataError: this host's cache cannot be used.
    """
    if reach is None or (reach.mark and sees(reach.mark)):
        return InPlace(Path(directory))
    return Copies(reach.source, reach.cache, where=directory)


def sees(mark: str) -> bool:
    """Whether this process sees a file."""
    # Not `Path.exists`, which raises where a directory may not be entered: that is not seeing it either.
    return os.access(mark, os.F_OK)
