"""Where a task of the preparation writes, and how what it has written reaches the store."""

import os
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sparknet.data.shards.shard_files import sees
from sparknet.data.storage.place import Place
from sparknet.data.storage.remedies import Outage
from sparknet.data.storage.retry import Patience
from sparknet.errors import ClusterError

__all__ = ["Delivery", "Uploads", "Workplace", "temporary_directory", "workplace_of"]

_PREFIX = "sparknet-prepare-"
_ABANDONED_SECONDS = 24 * 3600


class Delivery(Protocol):
    """Takes files into a directory that is being prepared; it travels to the tasks."""

    def deliver(self, path: Path, name: str) -> None:
        """Take a file whole, under this name.

        Raises:
            SparkNetError: it cannot be taken.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Uploads:
    """Takes files into a directory of an object store or HDFS."""

    directory: Place

    def deliver(self, path: Path, name: str) -> None:
        """As `Delivery.deliver`.

        Raises:
            ClusterError: the store does not answer.
            DataError: it cannot be written there.
        """
        patience = Patience()
        with path.open("rb") as file:
            while True:
                try:
                    return (self.directory / name).upload(file)
                except Outage as error:
                    if not patience.lasts():
                        raise ClusterError(str(error)) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Workplace:
    """A directory of this machine that a task writes in."""

    directory: Path
    remedy: str
    """Against a directory that cannot be written."""
    delivery: Delivery | None = None
    """None: what is written there is in the store."""

    def deliver(self, path: Path) -> None:
        """A file of it is whole.

        Raises:
            SparkNetError: it cannot be handed over.
            OSError: it cannot be removed then.
        """
        if self.delivery is not None:
            self.delivery.deliver(path, path.name)
            path.unlink()  # of a task's files one is on its disk at a time


@contextmanager
def workplace_of(directory: str, *, mark: str, delivery: Delivery | None) -> Generator[Workplace]:
    """The store's directory itself where this task sees it and may write there, else one of its own for a while."""
    # A mark, and not the directory: another machine may have one of the same name.
    if delivery is None or (mark and sees(mark) and os.access(directory, os.W_OK)):
        remedy = "set data.store to a directory that the workers can write, or to one of the driver alone or s3://"
        yield Workplace(directory=Path(directory), remedy=remedy)
        return
    with temporary_directory() as own:
        remedy = "free space there, or set TMPDIR on the workers to a larger disk"
        yield Workplace(directory=own, remedy=remedy, delivery=delivery)


@contextmanager
def temporary_directory() -> Generator[Path]:
    """A directory of this machine for a preparation; what killed ones left for a day goes.

    Raises:
        OSError: it cannot be made.
    """
    limit = time.time() - _ABANDONED_SECONDS
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another's, or just removed by another process: it takes room alone
            if left.stat(follow_symlinks=False).st_uid == os.getuid() and _newest(left) < limit:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as own:
        yield Path(own)


def _newest(directory: Path) -> float:
    """When something in a directory was last changed, in seconds since 1970."""
    return max(path.stat(follow_symlinks=False).st_mtime for path in (directory, *directory.rglob("*")))
