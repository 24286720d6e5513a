"""Which files a path means, and how their rows are cut into input partitions."""

import glob
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from sparknet.config import Windows
from sparknet.data.storage.local_files import is_file_uri, path_of
from sparknet.data.storage.place import LOCAL, Facts, Place, Storage
from sparknet.errors import DataError

__all__ = ["Location", "RowRange", "Split", "find_files", "local_path", "ranges", "split_rows"]

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where a source's files are."""

    path: str
    """A file, a glob or a directory, as a path or URI; "" for a source without files."""
    split: Split = "train"
    """Which files of a standard directory."""
    labels: str = ""
    """A file of labels beside the images, for the sources that need one."""
    root: str = ""
    """Where the relative paths of a list begin, for the sources that read one."""
    columns: tuple[str, ...] = ()
    """Which columns are wanted, for the sources that have columns of their own; (): all."""
    class_names: tuple[str, ...] = ()
    """Names of the classes by number, where other rows have settled them: validation rows are numbered as the
    training rows were."""
    windows: Windows | None = None
    """Which windows of images are rows, for the source that cuts them out."""
    order: Literal["rgb", "bgr"] = "rgb"
    """Of the channels, for sources that decode images themselves."""
    several_sizes: bool = False
    """Pixels of other sizes than the first are rows too, for the source of which each says its own: they come as
    `data.rows.own_size.pack` makes them."""
    storage: Storage = LOCAL
    """How the files are reached."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRange:
    """Rows `start` to `stop` (exclusive) of one file: an input partition."""

    path: str
    """Absolute path or URI."""
    start: int
    stop: int


def local_path(path: str) -> Path:
    """Turn a path or `file:` URI into a path.

    Raises:
        DataError: the path is empty or a URI of another scheme, or `path_of` refuses it.
    """
    if not path:
        raise DataError("the path is empty; name a file, a glob or a directory: set data.path")
    if "://" in path and not is_file_uri(path):
        raise DataError(
            f"{path}: scheme {path.split('://', 1)[0]} is not read by this format; it reads local paths and file: "
            "URIs: copy the files to a directory that every worker reaches"
        )
    return path_of(path)


def find_files(path: str, *, in_directory: Sequence[str], what: str, storage: Storage = LOCAL) -> list[Facts]:
    """List the files that a path, glob or directory means, sorted by name.

    Args:
        path: a file, a glob or a directory, as a path or URI; a URI has a glob in its last part only.
        in_directory: glob patterns relative to a directory, with a glob in the last part only; the first that
            matches anything is used.
        what: what is looked for, for the message ("CIFAR-10 training batches").
        storage: how a URI is reached.

    Raises:
        DataError: nothing is there, or it cannot be reached.
    """
    place = storage.place(path)
    # The name itself first: a file may be named like a pattern.
    here = place.facts()
    if here and here.is_directory:
        listings: dict[str, list[Facts]] = {}  # several patterns look into one directory, which is listed once
        # The first pattern that matches: a directory may hold a file both plain and gzipped.
        for pattern in in_directory:
            found = _named_like(place / pattern, listings)
            if found:
                return found
        raise DataError(f"{path}: the directory has no {what} ({' or '.join(in_directory)}); set data.path")
    found = [here] if here else _matches(place)
    if not found:
        raise DataError(f"{path}: no such file, directory or glob match; correct data.path")
    return found


def _matches(pattern: Place) -> list[Facts]:
    if pattern.local is None:
        return _named_like(pattern, {})
    matches = sorted(glob.glob(str(pattern.local)))  # noqa: PTH207 - Path.glob takes no absolute pattern
    found = [pattern.storage.place(name).facts() for name in matches]
    return [file for file in found if file and not file.is_directory]


def _named_like(pattern: Place, listings: dict[str, list[Facts]]) -> list[Facts]:
    """The files that the last part of a place means as a pattern; the directory is taken by its very name.

    As in a shell, what is hidden is meant only by a pattern that begins with a dot. `listings` holds those made so
    far.
    """
    directory = pattern.parent
    if directory.uri not in listings:
        listings[directory.uri] = directory.files()
    # Hidden files are what other programs are about to write, or macOS has left there.
    hidden = pattern.name.startswith(".")
    named = (file for file in listings[directory.uri] if fnmatchcase(file.name, pattern.name))
    return [file for file in named if hidden or not file.name.startswith(".")]


def split_rows(file: Place | Path, *, rows: int, most: int) -> list[RowRange]:
    """Cut a file's rows into as few ranges of nearly equal size as keep each within `most` rows."""
    uri = file.uri if isinstance(file, Place) else str(file.absolute())
    count = -(-rows // most)
    # Nearly equal: a short last range would leave a core idle while the others end.
    bounds = [rows * part // count for part in range(count + 1)] if count else [0]
    return [RowRange(path=uri, start=start, stop=stop) for start, stop in itertools.pairwise(bounds)]


def ranges(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut `start` to `stop` into consecutive pieces of at most `step`."""
    for begin in range(start, stop, step):
        yield begin, min(begin + step, stop)
