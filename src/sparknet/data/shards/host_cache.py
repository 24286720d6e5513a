"""A directory of this host that keeps copies of shards, up to a bound, for all processes of a user.

A copy is called by its SHA-256: whoever wants the same bytes finds them, and nobody takes others for them.
Who uses a copy holds its file locked in common (flock); who removes one needs it alone; who fetches one holds a
file `SHA256.lock`. The system drops such locks with the process that held them: a killed one stops nobody.
"""

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from sparknet.data.shards.shard import Shard
from sparknet.errors import ClusterError, DataError

__all__ = ["CacheFull", "CachePlace", "Held", "HostCache"]

_COPY = re.compile(r"[0-9a-f]{64}")
_DRAFT = re.compile(r"(?P<sha256>[0-9a-f]{64})\.[0-9a-f]{16}\.part")
_LOOK_SECONDS = 0.1

Fetch = Callable[[Shard], Iterator[bytes | memoryview]]
"""Gives a shard's bytes, in order."""


class CacheFull(ClusterError):
    """So much of the cache is in use that a shard has no room; at another attempt there may be."""

    def __init__(self, message: str, *, in_use: frozenset[str], coming: bool) -> None:
        super().__init__(message)
        self.in_use = in_use
        """Names of the copies that are held."""
        self.coming = coming
        """Others are being fetched, which nobody may hold when they are there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePlace:
    """Where a host keeps copies, and how many; it travels to the workers."""

    directory: str = ""
    """Not given: XDG_CACHE_HOME, or else the system's directory for temporary files."""
    gigabytes: float | None = None
    """The most that all copies take; None: half of what is free on that disk without them."""


class Held:
    """A copy that stays while it is held."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.handle = handle

    def close(self) -> None:
        """Let others remove it; may be called again."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)  # and with it goes the lock

    def __enter__(self) -> "Held":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class HostCache:
    """The copies of this user on this host. Safe for use by several threads and processes.

    Args:
        place: where it is, and how large.

    Attributes:
        arrived: grows while what somebody here waits for arrives, through whichever process of this host.

    Raises:
        DataError: the directory cannot be made, or is another's.
    """

    def __init__(self, place: CachePlace) -> None:
        base = place.directory or os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()
        # A name for each user: a directory for temporary files is everybody's, and copies of data are not.
        self.directory = Path(base).expanduser().absolute() / f"sparknet-{os.getuid()}"
        self._most_bytes = None if place.gigabytes is None else int(place.gigabytes * 1e9)
        # By SHA-256 the inode that this process has found whole.
        self._whole: dict[str, int] = {}
        self.arrived = 0
        self._seen: dict[str, int] = {}
        self._make_directory()

    def hold(self, shard: Shard, fetch: Fetch) -> Held:
        """A whole copy of a shard, fetched unless it is there; it is not removed while it is held.

        Args:
            shard: with its size and checksum.
            fetch: gives its bytes; called once a host, whichever of its processes is first.

        Raises:
            DataError: the shard is larger than the cache, what arrives is not it, or the disk is at fault.
            CacheFull: what others hold leaves no room.
            Exception: what `fetch` raises.
        """
        if not shard.sha256:
            raise DataError(
                f"shard {shard.path} has no checksum in its manifest, by which copies are known: delete its "
                "directory in the store to prepare the data again"
            )
        while True:
            held, damaged = self._look(shard)
            held = held or self._fetch(shard, fetch, damaged)
            if held is not None:
                return held

    # What is there ---------------------------------------------------------------------------------------

    def _look(self, shard: Shard) -> tuple[Held | None, int | None]:
        """The copy that is there, held; or the inode of a damaged one."""
        path = self.directory / shard.sha256
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None, None
        except OSError as error:
            raise self._unusable(error) from error
        held = Held(path, handle)
        try:
            # Waits for an instant at most: who wants it alone does so to remove it.
            fcntl.flock(handle, fcntl.LOCK_SH)
            facts = os.fstat(handle)
            if not facts.st_nlink:  # removed between the two
                held.close()
                return None, None
            if not self._is_whole(shard, handle, facts):
                held.close()
                return None, facts.st_ino
            os.utime(handle)  # the order in which copies are removed
        except BaseException:
            held.close()
            raise
        return held, None

    def _is_whole(self, shard: Shard, handle: int, facts: os.stat_result) -> bool:
        """By its size, and by its checksum where this process sees the file for the first time."""
        if facts.st_size != shard.bytes:
            return False
        if self._whole.get(shard.sha256) != facts.st_ino:
            with open(os.dup(handle), "rb") as file:  # noqa: PTH123 - of a handle
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    return False
            self._whole[shard.sha256] = facts.st_ino
        return True

    # Fetching --------------------------------------------------------------------------------------------

    def _fetch(self, shard: Shard, fetch: Fetch, damaged: int | None) -> Held | None:
        """Make a copy and hold it; None: somebody else has. `damaged` is the inode of what lies there."""
        path = self.directory / shard.sha256
        with self._locked(f"{shard.sha256}.lock", others=shard.sha256):
            there = path.stat().st_ino if path.exists() else None
            if there is not None and there != damaged:
                return None  # while this process waited
            draft = self._draft(shard)
            try:
                self._fill(draft, shard, fetch)
                # Before it has its name: else others could remove it before it is held, and so on for ever.
                held = Held(path, os.open(draft, os.O_RDONLY))
                fcntl.flock(held.handle, fcntl.LOCK_SH)
                draft.rename(path)  # a damaged one goes under; who has mapped it keeps what it has seen to be whole
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
        return held

    def _fill(self, draft: Path, shard: Shard, fetch: Fetch) -> None:
        digest, size = hashlib.sha256(), 0
        for _ in range(2):
            digest, size = hashlib.sha256(), 0
            try:
                with draft.open("r+b") as file:
                    for piece in fetch(shard):
                        self.arrived += bool(piece)
                        digest.update(piece)
                        size += len(piece)
                        if size > shard.bytes:
                            break
                        file.write(piece)
                    file.flush()
                    if size == shard.bytes and digest.hexdigest() == shard.sha256:
                        self._whole[shard.sha256] = os.fstat(file.fileno()).st_ino
                        return
            except OSError as error:
                raise self._unusable(error) from error
        raise DataError(
            f"shard {shard.path}: {size} bytes with SHA-256 {digest.hexdigest()} arrived twice; the manifest says "
            f"{shard.bytes} bytes with {shard.sha256}: delete its directory in the store to prepare the data again"
        )

    def _draft(self, shard: Shard) -> Path:
        """A file to fetch into, of the shard's size, for which there is room."""
        draft = self.directory / f"{shard.sha256}.{secrets.token_hex(8)}.part"
        with self._locked("room.lock"):
            for lock in self.directory.glob("*.lock"):
                self._remove_unused(lock)  # of a process that was killed
            self._make_room(shard)
            try:
                handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                try:
                    # Of its full size at once: others count it, and a full disk is told before anything is sent.
                    os.posix_fallocate(handle, 0, shard.bytes)
                finally:
                    os.close(handle)
            except OSError as error:
                draft.unlink(missing_ok=True)
                raise self._unusable(error) from error
        return draft

    def _make_room(self, shard: Shard) -> None:
        """Remove what dead processes left, and then the copies that were used longest ago."""
        found: list[tuple[int, int, Path]] = []
        for path in list(self.directory.iterdir()):
            left = _DRAFT.fullmatch(path.name)
            # Of this shard too: whoever calls this is the one that fetches it.
            if left is not None and (left["sha256"] == shard.sha256 or self._is_dead(left["sha256"])):
                path.unlink(missing_ok=True)
            elif left is not None or _COPY.fullmatch(path.name):
                # A draft may have been given its name in this moment, and counts under that; or was given up.
                place = path if left is None or path.exists() else self.directory / left["sha256"]
                with suppress(FileNotFoundError):
                    facts = place.stat(follow_symlinks=False)
                    found.append((facts.st_mtime_ns, facts.st_size, place))
        used = sum(size for _, size, _ in found)
        most = self._most_bytes
        if most is None:
            most = (shutil.disk_usage(self.directory).free + used) // 2
        if shard.bytes > most:
            raise DataError(
                f"shard {shard.path} has {shard.bytes / 1e9:.3g} GB, and this host's cache {self.directory} may "
                f"hold {most / 1e9:.3g} GB; a shard is fetched whole: raise data.cache_gigabytes, set data.cache "
                "to a larger disk, or lower data.shard_megabytes"
            )
        for _, size, path in sorted(found):
            if used + shard.bytes <= most:
                return
            if _COPY.fullmatch(path.name) and self._remove_unused(path):
                used -= size
        if used + shard.bytes > most:
            left = [path for _, _, path in found if path.exists()]
            raise CacheFull(
                f"{used / 1e9:.3g} GB of the {most / 1e9:.3g} GB that this host's cache {self.directory} may hold "
                f"are in use, and shard {shard.path} has {shard.bytes / 1e9:.3g} GB; each worker of a host needs "
                "room for four shards of each of its tables: raise data.cache_gigabytes, or lower "
                "data.shard_megabytes or the number of workers on a host",
                in_use=frozenset(path.name for path in left if _COPY.fullmatch(path.name)),
                coming=any(_DRAFT.fullmatch(path.name) for path in left),
            )

    def _is_dead(self, sha256: str) -> bool:
        """Whether no living process fetches this shard."""
        try:
            handle = os.open(self.directory / f"{sha256}.lock", os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            return _lock_alone(handle)
        finally:
            os.close(handle)

    @staticmethod
    def _remove_unused(path: Path) -> bool:
        """Remove a copy that nobody holds; whether it was."""
        try:
            # For writing, which NFS wants of who locks alone.
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True  # whoever found it damaged has replaced or removed it
        try:
            if not _lock_alone(handle):
                return False
            path.unlink(missing_ok=True)
            return True
        finally:
            os.close(handle)

    # The directory ---------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self, name: str, *, others: str = "") -> Generator[None]:
        """Alone under this name, among all processes; the file is gone afterwards.

        `others` is the shard that another process may be fetching meanwhile: what arrives there counts here.
        """
        path = self.directory / name
        while True:
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise self._unusable(error) from error
            try:
                while others and not _lock_alone(handle):
                    time.sleep(_LOOK_SECONDS)  # in a wait for the lock nobody could see that the other gets on
                    self._see_others(others)
                fcntl.flock(handle, fcntl.LOCK_EX)
                # Who held it before has removed the file, and others lock the next one of that name.
                if not os.fstat(handle).st_nlink:
                    continue
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
            finally:
                os.close(handle)

    def _see_others(self, sha256: str) -> None:
        """Count what another process has written of a shard since the last look."""
        for draft in self.directory.glob(f"{sha256}.*.part"):
            with suppress(FileNotFoundError):  # it is whole now, or was given up
                written = draft.stat().st_mtime_ns
                self.arrived += self._seen.get(sha256, 0) != written
                self._seen[sha256] = written

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            facts = self.directory.lstat()
        except OSError as error:
            raise self._unusable(error) from error
        # In a directory for everybody somebody else may have made it first, to read the data or to change them.
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
            raise DataError(
                f"{self.directory} is for copies of data, and must be a directory of user {os.getuid()} that "
                f"nobody else may enter (mode 0700); it is of user {facts.st_uid}, mode "
                f"{stat.S_IMODE(facts.st_mode):04o}: remove it, or set data.cache to another directory"
            )

    def _unusable(self, error: OSError) -> DataError:
        return DataError(
            f"this host's cache {self.directory} cannot be used: {error.strerror or error}; free space, or set "
            "data.cache to a directory that can be written"
        )


def _lock_alone(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
