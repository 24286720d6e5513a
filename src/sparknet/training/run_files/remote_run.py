"""A run whose directory is in a store: its driver works in one of its own machine, and this keeps up the copy.

Three things go on beside the run, each on a thread of its own: the driver says that it lives, small files are sent,
and whole directories are sent. Whatever fails is raised where the run asks (`check`), and ends it.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sparknet.data.storage.place import Place
from sparknet.errors import DataError, RunDirError
from sparknet.training.run_files.beat import Beat
from sparknet.training.run_files.checkpoint import Checkpoints
from sparknet.training.run_files.ownership import RENEW_SECONDS, Ownership
from sparknet.training.run_files.remote_copy import CONFIG, RemoteCopy

__all__ = ["SEND_SECONDS", "RemoteRun", "holds_run"]

SEND_SECONDS = 15.0
"""What has changed is sent this often, beside what checkpoints and validations bring about."""

_LOG = logging.getLogger(__name__)


class RemoteRun:
    """Owns a run directory in a store from `open` until `close`.

    Attributes:
        directory: the working directory.
        keep: how many checkpoints the store keeps.
    """

    def __init__(self, place: Place, owner: Ownership, directory: Path) -> None:
        self.directory = directory
        self.keep = 1
        self._place = place
        self._owner = owner
        self._copy = RemoteCopy(directory, place, owner.confirm)
        self._beats: list[Beat] = []
        self._on_error: Callable[[], None] = lambda: None

    @classmethod
    def open(cls, place: Place) -> "RemoteRun":
        """Become the owner, and make a working directory.

        Raises:
            RunDirError: another driver uses it, it cannot be written, or the working directory cannot be made.
        """
        with _in_words(f"{place} cannot be used"):
            owner = Ownership.acquire(place)
        try:
            with _in_words("no working directory can be made; name a disk with room in TMPDIR"):
                # In full, since paths in it are told by their names in the store.
                directory = Path(tempfile.mkdtemp(prefix="sparknet-run-")).resolve()
        except RunDirError:
            owner.release()
            raise
        return cls(place, owner, directory)

    def fetch(self) -> None:
        """Fetch what an earlier driver left, but its checkpoints.

        Raises:
            RunDirError: it cannot be fetched.
        """
        with _in_words(f"{self._place} cannot be fetched into {self.directory}"):
            self._copy.fetch_files()

    def fetch_checkpoints(self, checkpoints: Checkpoints) -> None:
        """Fetch the checkpoint that the run goes on from, and what it needs beside it.

        Raises:
            RunDirError: it cannot be fetched.
        """
        with _in_words(f"{self._place} cannot be fetched into {self.directory}"):
            self._copy.fetch_checkpoints(checkpoints)

    def begin(self) -> None:
        """Send what there is, and from now on what changes.

        Raises:
            RunDirError: it cannot be written.
        """
        with _in_words(f"{self._place} cannot be written"):
            self._copy.send_files()
        actions = (
            ("renew", self._owner.renew, RENEW_SECONDS),
            ("send-files", self._copy.send_files, SEND_SECONDS),
            ("send-whole", lambda: self._copy.send_whole(self.keep), SEND_SECONDS),
        )
        for name, action, seconds in actions:
            self._beats.append(
                Beat(
                    partial(self._do, action),
                    every_seconds=seconds,
                    name=f"run-dir-{name}",
                    on_error=lambda: self._on_error(),
                )
            )

    def watch(self, on_error: Callable[[], None]) -> None:
        """Have `on_error` called, on some thread, when `check` has something to raise."""
        self._on_error = on_error

    def check(self) -> None:
        """Do nothing as long as all goes well; never waits.

        Raises:
            RunDirError: the directory cannot be written any more, or another driver has taken it over.
        """
        for beat in self._beats:
            if beat.error is not None:
                raise beat.error

    def nudge(self) -> None:
        """Have what has changed sent now; never waits."""
        for beat in self._beats[1:]:
            beat.nudge()

    def catch_up(self) -> None:
        """Wait until all that there is now has been sent.

        Raises:
            RunDirError: it cannot be written.
        """
        self.nudge()
        for beat in self._beats[1:]:
            beat.catch_up()

    def close(self) -> None:
        """Send the rest, and let others have the directory; the working directory goes when all has been sent.

        Raises:
            RunDirError: something could not be sent; it stays in the working directory.
        """
        try:
            if self._beats:
                self.check()
                self.catch_up()
                # An older state of a file, sent meanwhile, must not arrive after the last one.
                for beat in self._beats[1:]:
                    beat.end()
                with self._sending():
                    self._copy.send_files(last=True)
        except RunDirError:
            self._leave()
            raise
        # Not after an interrupt: threads may still be at it, and the claim holds others off until they have ended.
        self._leave()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _leave(self) -> None:
        for beat in self._beats:
            beat.end()
        try:
            self._owner.release()
        except DataError as error:
            _LOG.warning("the next driver of %s has to wait, since this one cannot say that it ends: %s",
                self._place, error)  # fmt: skip

    def _do(self, action: Callable[[], None]) -> None:
        with self._sending():
            action()

    @contextmanager
    def _sending(self) -> Generator[None]:
        there = f"all that it has written is in {self.directory}, a run directory too"
        try:
            with _in_words(f"{self._place} does not take what the run writes"):
                yield
        except RunDirError as error:
            error.add_note(
                f"{there}: `sparknet resume {self.directory}` goes on there, `sparknet resume {self._place}` from "
                "what was sent before"
            )
            raise


def holds_run(place: Place) -> bool:
    """Whether there is a run in a store's directory.

    Raises:
        RunDirError: it cannot be found out.
    """
    with _in_words(f"{place} cannot be used"):
        return (place / CONFIG).facts() is not None


@contextmanager
def _in_words(what: str) -> Generator[None]:
    try:
        yield
    except DataError as error:
        raise RunDirError(f"{what}: {error}") from error
    except OSError as error:
        raise RunDirError(f"{what}: {error.strerror or error}; make room there, or see to the file") from error
