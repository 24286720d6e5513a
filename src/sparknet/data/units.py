"""Which files a path means, and how their rows are cut into units that are read independently."""

import glob
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from sparknet.errors import DataError

__all__ = ["Split", "Unit", "find_files", "local_path", "ranges", "split_rows"]

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Rows `start` to `stop` (exclusive) of one file: what one task reads."""

    path: str
    start: int
    stop: int


def local_path(path: str) -> Path:
    """Turn a path or `file:` URI into a path.

    Raises:
        DataError: the path is empty or a URI of another scheme.
    """
    if not path:
        raise DataError("the path is empty; name a file, a glob or a directory: set data.path")
    parts = urlsplit(path)
    if "://" not in path and parts.scheme != "file":
        return Path(path).expanduser()
    if parts.scheme != "file":
        raise DataError(
            f"{path}: scheme {parts.scheme} is not read by this format; it reads local paths and file: URIs: "
            "copy the files to a directory that every worker reaches"
        )
    return Path(unquote(parts.path))


def find_files(path: str, *, in_directory: Sequence[str], what: str) -> list[Path]:
    """List the files that a path, glob or directory means, sorted by name.

    Args:
        path: a file, a glob or a directory.
        in_directory: glob patterns relative to a directory; the first that matches anything is used.
        what: what is looked for, for the message ("CIFAR-10 training batches").

    Raises:
        DataError: nothing is there.
    """
    place = local_path(path)
    if place.is_dir():
        for pattern in in_directory:
            found = sorted(file for file in place.glob(pattern) if file.is_file())
            if found:
                return found
        raise DataError(f"{path}: the directory has no {what} ({' or '.join(in_directory)}); set data.path")
    if place.is_file():
        return [place]
    matches = glob.glob(str(place))  # noqa: PTH207 - Path.glob takes no absolute pattern
    found = sorted(Path(name) for name in matches if Path(name).is_file())
    if not found:
        raise DataError(f"{path}: no such file, directory or glob match; correct data.path")
    return found


def split_rows(path: Path, *, rows: int, most: int) -> list[Unit]:
    """Cut a file's rows into as few units of nearly equal size as keep each within `most` rows."""
    count = -(-rows // most)
    bounds = [rows * part // count for part in range(count + 1)] if count else [0]
    return [Unit(path=str(path.absolute()), start=start, stop=stop) for start, stop in itertools.pairwise(bounds)]


def ranges(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut `start` to `stop` into consecutive pieces of at most `step`."""
    for begin in range(start, stop, step):
        yield begin, min(begin + step, stop)
