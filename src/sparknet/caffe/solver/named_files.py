"""Where the files are that a solver file or a snapshot names."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sparknet.errors import CheckpointError

__all__ = ["find_file", "find_learned_net", "is_directory", "listed_files", "snapshot_prefix"]

_log = logging.getLogger(__name__)

_SHOWN = 200
"""Characters of a path in an error; a damaged file may hold thousands."""


def find_file(name: str, directory: Path | None) -> str:
    """A file that another one names: as Caffe seen from the current directory, else from that file's directory.

    Published files name paths of their authors' machines: what is at neither place is taken from beside the file,
    by the last part of its path, and a warning says so.
    """
    if directory is None or _holds(Path(name).exists):
        return name
    if _holds((directory / name).exists):
        return os.fspath(directory / name)
    beside = directory / Path(name).name
    if not Path(name).name or not _holds(beside.exists):
        return name
    _log.warning("%s is not here: %s is taken, which has its name", _shown(name), beside)
    return os.fspath(beside)


def listed_files(names: Iterable[str], directory: Path | None) -> Iterator[str]:
    """Files to start from; one string may hold several with commas between them (solver.cpp, LoadNetWeights)."""
    for several in names:
        yield from (find_file(name.strip(), directory) for name in several.split(",") if name.strip())


def find_learned_net(name: str, state: Path) -> Path:
    """The weights that a solver state names.

    Looked for from the current directory, as in Caffe, from the state's directory, and beside the state.

    Raises:
        CheckpointError: they are at none of these places.
    """
    # Caffe writes the path as snapshot_prefix had it: relative, or of the machine that trained. Files that were
    # moved together are found beside each other.
    places = dict.fromkeys((Path(name), state.parent / name, state.parent / Path(name).name))
    for place in places:
        if _holds(place.is_file):
            return place
    shown = ", ".join(_shown(str(place)) for place in places)
    raise CheckpointError(f"{state}: the weights that it names are at none of {shown}; put them there")


def snapshot_prefix(given: str, solver_file: Path | None) -> str:
    """What snapshots' names begin with: where it is missing or a directory, the solver file's name counts.

    Caffe's upgrade_proto.cpp, UpgradeSnapshotPrefixProperty.
    """
    if solver_file is None:
        return given
    if not given:
        return os.fspath(solver_file.with_suffix(""))
    return os.fspath(Path(given) / solver_file.stem) if is_directory(Path(given)) else given


def is_directory(path: Path) -> bool:
    """Whether it is one, and can be seen."""
    return _holds(path.is_dir)


def _holds(question: Callable[[], bool]) -> bool:
    """The answer of a path; no where the system has none, as for a name that is too long."""
    try:
        return question()
    except OSError:
        return False


def _shown(path: str) -> str:
    if not path.isprintable():
        path = repr(path)
    return path if len(path) <= _SHOWN else f"{path[:_SHOWN]}... ({len(path)} characters)"
