"""A run's local working directory and its copy in a store: what is sent, in which order, and what is fetched.

What is there and what was sent are compared, file by file: so a checkpoint that is gone before it could be sent is
left out, and a slow store never holds up more than one of them. Of a directory the file that says that it is whole
comes last and goes first, so that a half one is none.
"""

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from sparknet.data.storage.place import Facts, Place
from sparknet.errors import CheckpointError, DataError
from sparknet.training.run_files.checkpoint import FILES, INDEX, Checkpoints
from sparknet.whole_files import whole_directory

__all__ = ["CONFIG", "EVENTS", "PREPROCESS", "RESULT", "ROWS", "RemoteCopy", "fetch_directory"]

CONFIG = "config.toml"
RESULT = "result.json"
EVENTS = "events.jsonl"
ROWS = "rows.json"
PREPROCESS = "preprocess.safetensors"
SPARK_LOG = "spark.log"
_FETCHED = (CONFIG, PREPROCESS, RESULT, EVENTS, ROWS, SPARK_LOG)
_MODEL_INDEX = "model.json"
_ROUND = re.compile(r"checkpoints/round-(\d+)/([^/]+)")

_Stamp = tuple[object, ...]

_LOG = logging.getLogger(__name__)


class RemoteCopy:
    """Knows what the copy holds; `send_files` and `send_whole` may go on at once, on a thread each.

    Args:
        directory: the working directory.
        place: of the copy.
        confirm: called before anything is written; raises where that is not allowed any more.
    """

    def __init__(self, directory: Path, place: Place, confirm: Callable[[], None]) -> None:
        self._directory = directory
        self._place = place
        self._confirm = confirm
        self._sent: dict[str, _Stamp] = {}
        self._rounds: list[int] = []
        # What is fetched must not look like something new before it is known to be there already.
        self._whole = threading.Lock()

    def send_files(self, *, last: bool = False) -> None:
        """Send the small files that have changed: an object store appends nothing, so each as a whole.

        Args:
            last: nobody writes any more, so Spark's log too, which grows with every word of its Java machine.

        Raises:
            DataError: one cannot be written there.
            OSError: one cannot be read here.
        """
        for path in _visible(self._directory):
            if path.name != RESULT and (last or path.name != SPARK_LOG):
                self._send_file(path)

    def send_whole(self, keep: int) -> None:
        """Send what appears whole: checkpoints, snapshots, the model, and last the result, which vouches for all.

        Args:
            keep: how many checkpoints are kept there, if fewer are here.

        Raises:
            DataError: something cannot be written there.
            OSError: something cannot be read here.
        """
        with self._whole:
            self._send_whole(keep)

    def _send_whole(self, keep: int) -> None:
        finished = (self._directory / RESULT).exists()  # before the others: what it vouches for is there by then
        rounds = Checkpoints(self._directory, keep).rounds()
        for round in reversed(rounds):  # if they wait, the newest is worth most
            self._send_directory(_checkpoint(round), INDEX, _names_in_index)
        if rounds and rounds != self._rounds:
            self._make_room(rounds, keep)
        for path in _visible(self._directory / "snapshots"):  # the weights before the state of the same iteration
            self._send_file(path)
        self._send_directory("model", _MODEL_INDEX, _names)
        if finished:
            self._send_file(self._directory / RESULT)

    def fetch_files(self) -> None:
        """Fetch what a run goes on with or is looked at by, but its checkpoints.

        Raises:
            DataError: something cannot be read there.
            OSError: something cannot be written here.
        """
        there = {facts.name for facts in self._place.files()}
        for name in there.intersection(_FETCHED):
            path = self._directory / name
            (self._place / name).download(path)
            with path.open("rb") as file:
                self._sent[name] = _stamp([file])

    def fetch_checkpoints(self, checkpoints: Checkpoints) -> None:
        """Fetch the newest checkpoint that is whole, damaged ones that are newer, and the one of the best round.

        Raises:
            DataError: something cannot be read there.
            OSError: something cannot be written here.
        """
        with self._whole:
            self._fetch_checkpoints(checkpoints)

    def _fetch_checkpoints(self, checkpoints: Checkpoints) -> None:
        there = self._rounds_there()
        checkpoints.directory.mkdir(parents=True, exist_ok=True)
        for round in sorted(there, reverse=True):
            self._fetch_checkpoint(round, there[round], checkpoints)
            try:
                saved = checkpoints.load(round)
            except CheckpointError:
                continue  # it stays here, where whoever goes on from the newest good one tells of it
            best = saved.best.round if saved.best else round
            if best != round and best in there:
                self._fetch_checkpoint(best, there[best], checkpoints)
            break
        self._rounds = checkpoints.rounds()

    def _fetch_checkpoint(self, round: int, there: set[str], checkpoints: Checkpoints) -> None:
        whole = INDEX in there
        with whole_directory(checkpoints.path(round)) as directory:
            for name in there if whole else ():
                (self._place / _checkpoint(round) / name).download(directory / name)
        if whole:
            with ExitStack() as stack:
                files = _open(checkpoints.path(round), sorted(there), stack)
                self._sent[_checkpoint(round)] = _stamp(files.values())

    def _send_file(self, path: Path) -> None:
        name = path.relative_to(self._directory).as_posix()
        with path.open("rb") as file:
            stamp = _stamp([file])
            if self._sent.get(name) != stamp:
                self._confirm()
                (self._place / name).upload(file)
                self._sent[name] = stamp

    def _send_directory(self, name: str, index: str, names_of: Callable[[Path], Sequence[str]]) -> None:
        path = self._directory / name
        with ExitStack() as stack:
            try:
                # All are open before the first is sent: they stay readable when room is made for newer ones.
                files = _open(path, names_of(path / index), stack)
                last = stack.enter_context((path / index).open("rb"))
            except (FileNotFoundError, ValueError, KeyError):
                return  # it is not there yet, not any more, or was damaged when it was fetched
            stamp = _stamp([*files.values(), last])
            if self._sent.get(name) == stamp:
                return
            self._confirm()
            (self._place / name / index).delete()  # one of the same round from before a fall-back
            for file, opened in files.items():
                self._confirm()
                (self._place / name / file).upload(opened)
            self._confirm()
            (self._place / name / index).upload(last)
            self._sent[name] = stamp

    def _make_room(self, rounds: list[int], keep: int) -> None:
        there, newest = self._rounds_there(), rounds[-1]
        if INDEX not in there.get(newest, ()):
            return  # it was gone before it could be sent; a newer one comes
        # Those behind the newest are damaged, else the run had gone on from them.
        others = sorted(round for round in there if round not in rounds and round < newest)
        whole = [round for round in others if INDEX in there[round]]
        # After a resumption fewer are here than there, and each of those counts.
        kept = whole[-(keep - len(rounds)) :] if keep > len(rounds) else []
        for round in sorted(set(others) - set(kept)):
            place = self._place / _checkpoint(round)
            self._confirm()
            try:
                (place / INDEX).delete()
                place.delete()
            except DataError as error:
                _LOG.warning("%s: an old checkpoint stays: %s", place, error)  # it costs room alone
        self._rounds = rounds

    def _rounds_there(self) -> dict[int, set[str]]:
        """The files of each round's checkpoint, whole or not."""
        found: dict[int, set[str]] = {}
        base = len(self._place.uri.rstrip("/")) + 1
        for facts in (self._place / "checkpoints").files(recursive=True):
            match = _ROUND.fullmatch(facts.uri[base:])
            # Any other name, written by whomever, could lead out of the directory that it is fetched into.
            if match and match[2] in (INDEX, *FILES):
                found.setdefault(int(match[1]), set()).add(match[2])
        return found


def fetch_directory(place: Place, directory: Path) -> None:
    """Fetch the files that lie in `place` itself.

    Raises:
        DataError: one cannot be read there.
        OSError: one cannot be written here.
    """
    found: list[Facts] = place.files()
    for facts in found:
        (place / facts.name).download(directory / facts.name)


def _checkpoint(round: int) -> str:
    return f"checkpoints/round-{round:06d}"


def _visible(directory: Path) -> list[Path]:
    """The files of a directory by name, without locks and what is being written."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))


def _names_in_index(index: Path) -> list[str]:
    # Not a listing, from which some may be missing while room is made for newer ones.
    return sorted(json.loads(index.read_text(encoding="utf-8"))["files"])


def _names(index: Path) -> list[str]:
    return [path.name for path in _visible(index.parent) if path != index]


def _open(directory: Path, names: Iterable[str], stack: ExitStack) -> dict[str, BinaryIO]:
    return {name: stack.enter_context((directory / name).open("rb")) for name in names}


def _stamp(files: Iterable[BinaryIO]) -> _Stamp:
    """Which files they are, and in which state: a file that is replaced is another one."""
    facts = [os.fstat(file.fileno()) for file in files]
    return tuple(sorted((fact.st_ino, fact.st_size, fact.st_mtime_ns) for fact in facts))
