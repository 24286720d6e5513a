"""All access to files by URI: local paths, `file:`, `s3://`, `hdfs://` and what else Arrow knows.

A `Place` is a file or directory somewhere. It holds no open connection and no secret, so it travels to tasks.
Requests that a network or a busy server broke are made again; what is read is verified to be whole; what is
written appears whole or not at all.
"""

import errno
import io
import mmap
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.fs as arrow_fs

from sparknet.data.storage.arrow_systems import (
    S3_SCHEMES,
    check_endpoint,
    check_uri,
    file_system,
    replaces_whole,
    scheme_of,
)
from sparknet.data.storage.local_files import files_in, is_file_uri, path_of
from sparknet.data.storage.remedies import Cut, Outage, explain, hides_answer, is_transient
from sparknet.data.storage.remote_file import READ_AHEAD_BYTES, RemoteFile
from sparknet.data.storage.retry import retried
from sparknet.errors import DataError
from sparknet.whole_files import whole_file

__all__ = ["LOCAL", "Facts", "Place", "Storage"]

T = TypeVar("T")

_UPLOAD_BYTES = 32 << 20  # Arrow sends parts of 10 MB side by side, from copies of what it was given
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a listing says of a file or directory."""

    uri: str
    """Where it is; `Storage.place` takes it."""
    name: str
    """The last part of the URI."""
    bytes: int
    """Its size; 0 for a directory."""
    modified_ns: int | None
    """Time of change in nanoseconds since 1970; None where the file system keeps none."""
    is_directory: bool = False
    """Whether it is a directory (on S3: a prefix that keys have)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """How files are reached. It travels to tasks: credentials stay in each machine's environment.

    Raises:
        DataError: the endpoint is no URL of a server.
    """

    s3_endpoint: str = ""
    """URL of an S3-compatible server; not given: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, else AWS itself."""

    def __post_init__(self) -> None:
        if self.s3_endpoint:
            check_endpoint(self.s3_endpoint)

    def place(self, uri: str) -> "Place":
        """The file or directory that a path or URI names; nothing is looked up yet.

        What follows the bucket of an S3 URI is its key, letter by letter: nothing in it is decoded.

        Raises:
            DataError: the URI is empty, holds credentials or names no bucket, or is a path that `path_of` refuses.
        """
        if not uri:
            raise DataError("the path is empty; name a file, a glob or a directory: set data.path")
        if is_file_uri(uri) or scheme_of(uri) == "file":
            local = path_of(uri).absolute()
            return Place(uri=str(local), local=local, storage=self)
        check_uri(uri)
        scheme, rest = uri.split("://", 1)
        return Place(uri=f"{scheme}://{rest.rstrip('/') or '/'}", local=None, storage=self)


LOCAL = Storage()
"""For callers that know of no endpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A file or directory; made by `Storage.place`."""

    uri: str
    """Absolute path or URI; it never holds credentials."""
    local: Path | None
    """The path, if it is on this machine's file system."""
    storage: Storage
    """How it is reached."""

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part of the path; of a bucket, the bucket."""
        return self.uri.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Place":
        """The directory that it is in; a bucket or root is its own parent."""
        if self.local:
            return self.storage.place(str(self.local.parent))
        scheme, rest = self.uri.split("://", 1)
        # of a bucket dirname leaves nothing
        return self.storage.place(f"{scheme}://{posixpath.dirname(rest) or rest}")

    def __truediv__(self, name: str) -> "Place":
        return self.storage.place(_join(self.uri, name))

    def facts(self) -> Facts | None:
        """What is there; None: nothing.

        Raises:
            DataError: it cannot be found out, or there is no such bucket.
        """
        system, path = _system(self)
        info = _attempt(self, lambda: system.get_file_info(path), doing="looked up")
        if info.type == arrow_fs.FileType.NotFound:
            _check_bucket(self)  # Arrow says the same of any key in a bucket that does not exist
            return None
        return _facts(self.uri, info)

    def files(self, pattern: str = "*", *, recursive: bool = False) -> list[Facts]:
        """What a directory's listing says of the files whose names match, sorted by URI.

        Args:
            pattern: as of `fnmatch`, for the file's name; case matters.
            recursive: also the files of the directories below.

        Returns:
            Nothing if there is no such directory: object stores know none that are empty.

        Raises:
            DataError: the directory cannot be listed, a directory links to one that it lies in, a local name is not
                UTF-8, or there is no such bucket.
        """
        if self.local:
            files = _attempt(self, partial(_list_locally, self, pattern, recursive=recursive), doing="listed")
            return sorted(files, key=lambda file: file.uri)
        system, path = _system(self)
        # Object stores have no directories: a prefix without keys is an empty one, and not missing.
        selector = arrow_fs.FileSelector(path, recursive=recursive, allow_not_found=True)
        found = _attempt(self, lambda: system.get_file_info(selector), doing="listed")
        if not found:
            _check_bucket(self)
        # Arrow's paths lack scheme and host, and on HDFS begin with a slash: what is below goes behind our own URI.
        above = f"{path.strip('/')}/"
        files = [
            _facts(_join(self.uri, info.path.lstrip("/").removeprefix(above)), info)
            for info in found
            if info.type == arrow_fs.FileType.File and fnmatchcase(info.base_name, pattern)
        ]
        return sorted(files, key=lambda file: file.uri)

    def children(self, pattern: str = "*", *, recursive: bool = False) -> "list[Place]":
        """The files of a directory whose names match, as `files` finds them.

        Raises:
            DataError: the directory cannot be listed, or there is no such bucket.
        """
        return [self.storage.place(file.uri) for file in self.files(pattern, recursive=recursive)]

    def read(self) -> bytes:
        """The whole file.

        Raises:
            DataError: it is not there or cannot be read whole.
        """
        with self.open() as file:
            return _attempt(self, file.read, doing="read") if self.local else file.read()

    def read_range(self, start: int, size: int) -> bytes:
        """Exactly `size` bytes from byte `start`.

        A remote file is asked for its size first: who reads many ranges of one file opens it.

        Raises:
            DataError: it is not there, ends before, or cannot be read.
        """
        if self.local:
            with self.open() as file:
                _attempt(self, lambda: file.seek(start), doing="read")
                data = _attempt(self, lambda: file.read(size), doing="read")
        else:
            with _open_remote(self) as file:  # without the buffer, which would read 8 MB at least
                data = file.take(start, max(0, min(size, file.size - start)))
        if len(data) != size:
            raise DataError(
                f"{self.uri}: ends at byte {start + len(data)}, {size} bytes from {start} are needed; it shrank or "
                "was cut off: fetch it again"
            )
        return data

    def open(self) -> io.BufferedReader:
        """The file for reading: seekable; a remote one reads ahead in pieces of 8 MB.

        Raises:
            DataError: it is not there or cannot be opened.
        """
        if self.local:
            return _attempt(self, partial(self.local.open, "rb"), doing="read")
        return io.BufferedReader(_open_remote(self), READ_AHEAD_BYTES)

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        """The file from byte `start` on, in order, in pieces of 8 MB; of a remote one several are read at once.

        Raises:
            DataError: it is not there or cannot be read whole.
        """
        if self.local is None:
            with _open_remote(self) as file:
                yield from file.pieces(start)
            return
        with self.open() as file:
            file.seek(start)
            while piece := _attempt(self, partial(file.read, READ_AHEAD_BYTES), doing="read"):
                yield piece

    def write(self, data: bytes) -> None:
        """Make a file of these bytes, or replace it: whole or not at all.

        Raises:
            DataError: it cannot be written.
        """
        if self.local is None:
            _upload(self, data)
            return
        with self.writing() as file:
            file.write(data)

    @contextmanager
    def writing(self) -> Generator[BinaryIO]:
        """A file to write into, which appears whole when the block ends, and not at all when it raises.

        A local file's directory is made if needed. A remote file is collected in a local temporary file first.

        Raises:
            DataError: it cannot be written.
        """
        with _disk_errors(self):
            if self.local:
                with _whole_file(self.local) as file:
                    yield file
                return
            # An output stream of Arrow's that is closed after an exception makes an object of what has arrived, and
            # Python closes it whenever it leaves the block. So nothing is sent before the block has ended well.
            with tempfile.TemporaryFile() as spool:
                file = cast("BinaryIO", spool)
                yield file
                file.flush()
                self.upload(file)

    def upload(self, file: BinaryIO) -> None:
        """Make a file of all that an open local file holds now, or replace it: whole or not at all.

        A remote one is sent in pieces, from the file itself: memory holds one of them, however large the file is.
        It may grow meanwhile, or be unlinked, but must not shrink.

        Raises:
            DataError: it cannot be written.
        """
        if self.local:
            file.seek(0)
            with self.writing() as target:
                shutil.copyfileobj(file, target)
            return
        size = os.fstat(file.fileno()).st_size
        if not size:  # which cannot be mapped
            _upload(self, b"")
            return
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
            _upload(self, data)

    def download(self, path: Path) -> None:
        """Write all of this file to a local one, which appears whole or not at all.

        Raises:
            DataError: it is not there or cannot be read whole.
            OSError: the local file cannot be written.
        """
        with whole_file(path) as draft, draft.open("wb") as target, self.open() as file:
            shutil.copyfileobj(file, target, _UPLOAD_BYTES)

    def delete(self) -> None:
        """Remove a file or a directory with all that is in it; it may be missing.

        On S3 an empty object `DIRECTORY/` may stay, which marks the directory that a removed file was in.

        Raises:
            DataError: it cannot be removed, or is a whole bucket.
        """
        if self.parent == self:
            raise DataError(f"{self.uri}: a whole bucket or file system is not removed; name a directory in it")
        if self.local:
            _attempt(self, partial(_delete_locally, self.local), doing="removed")
            return
        facts = self.facts()
        if facts:
            system, path = _system(self)
            # Asked first, since Arrow has one call for files and another for directories.
            remove = system.delete_dir if facts.is_directory else system.delete_file
            _attempt(self, lambda: _unless_missing(remove, path), doing="removed")


def _system(place: Place) -> tuple[Any, str]:
    if place.local:  # to look one up; files are opened and listed by Python itself
        return arrow_fs.LocalFileSystem(), str(place.local)
    return file_system(place.uri, s3_endpoint=place.storage.s3_endpoint)


def _join(uri: str, name: str) -> str:
    return f"{uri}{name}" if uri.endswith("/") else f"{uri}/{name}"


def _attempt(place: Place, action: Callable[[], T], *, doing: str) -> T:
    try:
        return retried(action)
    except (OSError, pa.ArrowException) as error:  # ArrowInvalid, as of a key `a//b`, is no OSError
        if isinstance(error, FileNotFoundError):
            _check_bucket(place)
        kind = Outage if isinstance(error, OSError) and is_transient(error) else DataError
        raise kind(f"{place.uri}: cannot be {doing}: {explain(error)}") from error


def _check_bucket(place: Place) -> None:
    """Tell a missing bucket, which is a mistake, from a missing file, which may be none."""
    if scheme_of(place.uri) in S3_SCHEMES:
        _bucket_is_there(place.uri.split("/")[2], place.storage, os.getpid())


# Once for each bucket: else every look-up of a file that may be missing would cost a second request.
@cache
def _bucket_is_there(bucket: str, storage: Storage, process: int) -> None:
    del process  # a child must ask by connections of its own
    system, path = file_system(f"s3://{bucket}", s3_endpoint=storage.s3_endpoint)
    try:
        info = retried(lambda: system.get_file_info(path))
    except OSError:
        return  # one may be allowed to read files of a bucket and not to ask for the bucket itself
    if info.type == arrow_fs.FileType.NotFound:
        raise DataError(
            f"s3://{bucket}: no such bucket; correct the URI, or data.s3_endpoint if another server holds it"
        )


def _facts(uri: str, info: Any) -> Facts:
    is_directory = info.type == arrow_fs.FileType.Directory
    return Facts(
        uri=uri,
        name=uri.rsplit("/", 1)[-1],
        bytes=0 if is_directory else info.size,
        modified_ns=info.mtime_ns,
        is_directory=is_directory,
    )


def _list_locally(place: Place, pattern: str, *, recursive: bool) -> list[Facts]:
    assert place.local is not None, "the caller has looked"
    return [
        Facts(uri=_join(place.uri, name), name=base, bytes=found.st_size, modified_ns=found.st_mtime_ns)
        for name, found in files_in(place.local, recursive=recursive)
        if fnmatchcase(base := name.rpartition("/")[2], pattern)
    ]


def _open_remote(place: Place) -> RemoteFile:
    system, path = _system(place)
    # Not `open_input_stream`, which asks for 256 KB at a time: a fiftieth of the speed.
    file = _attempt(place, lambda: system.open_input_file(path), doing="read")

    def run(request: Callable[[], bytes]) -> bytes:
        return _attempt(place, partial(_told_if_gone, request, lambda: system.get_file_info(path)), doing="read")

    return RemoteFile(file, run=run)


def _told_if_gone(request: Callable[[], bytes], look: Callable[[], Any]) -> bytes:
    """Do a request; where its error is hidden, look once more whether the file is there, which tells more."""
    try:
        return request()
    except OSError as error:
        # A refusal of the look itself is raised in the place of the hidden one: it says what is wrong.
        if hides_answer(error) and look().type == arrow_fs.FileType.NotFound:
            raise FileNotFoundError(errno.ENOENT, "it was removed while it was read") from error
        raise


def _upload(place: Place, data: bytes | mmap.mmap) -> None:
    # An interrupt of the main thread (Ctrl-C) between two pieces would close Arrow's stream, and closing it makes
    # an object of what has arrived: so another thread uploads, which is not interrupted.
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(_attempt, place, partial(_upload_once, place, data), doing="written").result()


def _upload_once(place: Place, data: bytes | mmap.mmap) -> None:
    system, path = file_system(place.uri, s3_endpoint=place.storage.s3_endpoint, writing=True)
    if replaces_whole(place.uri):
        _store(system, path, data)
        return
    # HDFS shows a file as it grows.
    directory, name = posixpath.split(path)
    temporary = posixpath.join(directory, f".{name}.{uuid.uuid4().hex}.part")
    system.create_dir(directory, recursive=True)
    try:
        _store(system, temporary, data)
        # HDFS renames onto nothing only. Between these two there is no file: readers of one that is replaced see it
        # go and come, and never half of it.
        _unless_missing(system.delete_file, path)
        system.move(temporary, path)
    except OSError:
        _unless_missing(system.delete_file, temporary)
        raise


def _store(system: Any, path: str, data: bytes | mmap.mmap) -> None:
    with memoryview(data) as view, system.open_output_stream(path) as stream:
        for at in range(0, len(view), _UPLOAD_BYTES):
            with view[at : at + _UPLOAD_BYTES] as piece:
                stream.write(piece)
            stream.flush()  # waits for the parts, so that memory holds one piece of them
    # A stream may end well without having stored everything (see `background_writes`): only the store knows.
    stored = system.get_file_info(path).size
    if stored != len(data):
        raise Cut(f"{stored} of {len(data)} bytes were stored")


def _unless_missing(remove: Callable[[str], None], path: str) -> None:
    try:
        remove(path)
    except FileNotFoundError:
        return  # somebody was faster, or the answer to our first request was lost


def _delete_locally(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():  # of a link the link goes, and what it leads to stays
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _disk_errors(place: Place) -> Generator[None]:
    """Say which file a full disk has spoilt; other errors may be the caller's own and pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise DataError(
            f"{place.uri}: cannot be written: {error.strerror}; free space or name another place"
        ) from error


@contextmanager
def _whole_file(path: Path) -> Generator[BinaryIO]:
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = stack.enter_context(whole_file(path))
            file = stack.enter_context(draft.open("wb"))
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}; name a place that can be") from error
        yield file
