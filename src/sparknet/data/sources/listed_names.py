"""Files that a list names, one a line, wherever the list's own paths begin."""

from collections.abc import Iterator

from sparknet.data.storage.place import Place, Storage
from sparknet.errors import DataError

__all__ = ["lines_of", "root_of"]


def lines_of(place: Place) -> Iterator[tuple[int, str]]:
    """Number and text of each line of a list that is not blank.

    Raises:
        DataError: it cannot be read, is no text, or has no line.
    """
    try:
        text = place.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: it is not UTF-8 and so no list of files: {error}; give another file") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{place}: the list names no file; each line names one: give another")
    yield from lines


def root_of(place: Place, first: str, *, root: str, storage: Storage) -> Place:
    """Where the list's relative paths begin.

    Args:
        place: the list.
        first: the first path in it.
        root: the directory that was named for it; "": as Caffe looks, from the current directory, and where nothing
            of the first path's name is there, from the list's own.
        storage: how a URI is reached.
    """
    if root:
        return storage.place(root)
    here = storage.place(".")
    return here if first.startswith("/") or (here / first).facts() is not None else place.parent
