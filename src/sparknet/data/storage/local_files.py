"""Paths of this machine: what a path or `file:` URI names, and which files a directory holds."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from sparknet.errors import DataError

__all__ = ["files_in", "is_file_uri", "path_of"]

_SCHEME = "file:"


def is_file_uri(path: str) -> bool:
    """Tell whether a path is written as a `file:` URI."""
    return path[: len(_SCHEME)].lower() == _SCHEME


def path_of(path: str) -> Path:
    """The path that a path or `file:` URI names; of a URI `%20` and its like are decoded.

    `?` and `#` are letters of a name or glob in a URI as well: nobody means a query of a file by them.

    Raises:
        DataError: the URI names another host or nothing, the home directory is unknown, or the name is not UTF-8.
    """
    try:
        # `~` is a shell's word: in a path typed into a configuration nobody else expands it, in a URI it is a name.
        found = Path(_name_in(path)) if is_file_uri(path) else Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: there is no such user with a home directory: write the whole path") from error
    _check_name(str(found))
    return found


def files_in(directory: Path, *, recursive: bool) -> Iterator[tuple[str, os.stat_result]]:
    """Name, from `directory` on, and facts of each regular file in a directory, in no order; links are followed.

    Args:
        directory: which may be missing: then it has no files.
        recursive: also the files of the directories below.

    Raises:
        OSError: a directory cannot be listed.
        DataError: a directory links to one that it lies in, or a name is not UTF-8.
    """
    try:
        yield from _files_below(str(directory), "", {}, recursive=recursive)
    except FileNotFoundError:
        if directory.exists():  # then another one below it went away while it was listed
            raise


def _name_in(uri: str) -> str:
    rest = uri[len(_SCHEME) :]
    if rest.startswith("//"):
        # RFC 8089: the part between the second and the third slash is a host, which `file://data/x` forgets.
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise DataError(
                f"{uri}: names a host {host!r}; a file: URI is of this machine: write file:///{host}{slash}{path}"
            )
        rest = slash + path
    if not rest:
        raise DataError(f"{uri}: names no path; write file:///PATH")
    return unquote(rest)


def _files_below(
    path: str, prefix: str, above: dict[tuple[int, int], str], *, recursive: bool
) -> Iterator[tuple[str, os.stat_result]]:
    own = os.stat(path)  # noqa: PTH116 - a million files are listed in strings, which take a third of the time
    # Links are followed, so a directory may lie in itself under ever longer names: only its inode tells.
    identity = (own.st_dev, own.st_ino)
    if identity in above:
        raise DataError(
            f"{path}: is a link to {above[identity]}, which it lies in itself: its files would be read again and "
            "again; remove the link"
        )
    with os.scandir(path) as entries:
        for entry in entries:
            _check_name(entry.path)
            if entry.is_dir():
                if recursive:
                    below = above | {identity: path}
                    yield from _files_below(entry.path, f"{prefix}{entry.name}/", below, recursive=True)
                continue
            facts = _facts(entry)
            if facts is not None and stat.S_ISREG(facts.st_mode):
                yield prefix + entry.name, facts


def _facts(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except FileNotFoundError:
        return None  # a link to nothing, or a file that was removed meanwhile


def _check_name(name: str) -> None:
    # Python carries other bytes as lone surrogates; they would break much later, in Arrow, Spark or JSON.
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name!a}: the name is not UTF-8, which files' names must be: rename it") from None
