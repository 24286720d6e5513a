"""Writes LMDB databases of Caffe's Datum records, as Caffe's convert_imageset does."""

from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lmdb

from sparknet.errors import DataError
from sparknet.whole_files import whole_directory

__all__ = ["DatabaseWriter"]

_MOST_RECORDS = 10**8  # keys have eight digits
_LONGEST_KEY = 511
_COMMIT_BYTES = 64 << 20
_PAGE_ROOM = 4096 + 64  # a record that fills its last page badly, its header and its place in the leaf page


class DatabaseWriter:
    """Writes a database that Caffe reads: `with DatabaseWriter(directory) as writer: writer.append(value)`.

    Keys are `%08d`, or `%08d_name` as Caffe's convert_imageset writes them. The directory appears whole when the
    block ends, and not at all when it raises. The file grows with its records; the map of which its header tells
    readers takes no disk and stays below twice the file's size and 160 MB.
    """

    def __init__(self, directory: Path) -> None:
        """Prepare to write `directory`, which must not exist yet or be empty.

        Raises:
            DataError: there is something already.
        """
        # Told now, and not by the rename at the end, hours later.
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise DataError(f"{directory}: there is something already; remove it, or write to another place")
        self._directory = directory
        self._stack = ExitStack()
        self._environment: Any = None
        self._map_bytes = 1 << 20
        self._waiting: list[tuple[bytes, bytes]] = []
        self._waiting_bytes = 0
        self._rows = 0

    def __enter__(self) -> Self:
        try:
            self._directory.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                draft = stack.enter_context(whole_directory(self._directory, replace=False))
                self._environment = stack.enter_context(closing(self._environment_in(draft)))
                self._stack = stack.pop_all()
        except (OSError, lmdb.Error) as error:
            raise self._unwritable(error) from error
        return self

    def append(self, value: bytes, name: str = "") -> None:
        """Add one record.

        Args:
            value: a Datum, as `datum.write` makes it.
            name: what the key tells beside the record's number, for example the image's file name.

        Raises:
            DataError: the key would be too long, there are 10**8 records already, or it cannot be written.
        """
        if self._rows >= _MOST_RECORDS:
            raise DataError(
                f"{self._directory}: more than {_MOST_RECORDS} records; keys have eight digits: "
                "write several databases into one directory"
            )
        key = f"{self._rows:08d}{'_' if name else ''}{name}".encode()
        if len(key) > _LONGEST_KEY:
            raise DataError(
                f"{self._directory}: key {key[:40]!r}… has {len(key)} bytes; LMDB takes at most "
                f"{_LONGEST_KEY}: shorten the name"
            )
        # Held until a commit, since the map can be enlarged between transactions only, by what the next one needs.
        self._waiting.append((key, value))
        self._waiting_bytes += _stored_bytes(key, value)
        self._rows += 1
        if self._waiting_bytes >= _COMMIT_BYTES:
            self._commit()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        try:
            with self._stack:
                if not self._rows:
                    raise DataError(
                        f"{self._directory}: no records were written; a database must hold at least one"
                    )
                self._commit()
        except (OSError, lmdb.Error) as failed:
            raise self._unwritable(failed) from failed

    def _commit(self) -> None:
        """Write what waits."""
        try:
            used = (self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"]
            # leaf and branch pages that a transaction copies come on top of the records
            needed = used + self._waiting_bytes + self._waiting_bytes // 8 + (1 << 20)
            if needed > self._map_bytes:
                # Doubled, so that it seldom happens; by 1 GiB at most, for readers map as much as the header tells.
                self._map_bytes = max(needed, min(2 * self._map_bytes, needed + (1 << 30)))
                self._environment.set_mapsize(self._map_bytes)
            with self._environment.begin(write=True) as transaction:
                for key, value in self._waiting:
                    # Keys only grow, so pages fill up one after the other and lie as they will be read.
                    transaction.put(key, value, append=True)
        except (OSError, lmdb.Error) as error:
            raise self._unwritable(error) from error
        self._waiting, self._waiting_bytes = [], 0

    def _environment_in(self, draft: Path) -> Any:
        # No lock file: nobody else knows the draft. No sync before the end: it is whole or not there at all.
        return lmdb.open(str(draft), map_size=self._map_bytes, lock=False, sync=False, metasync=False)

    def _unwritable(self, error: Exception) -> DataError:
        return DataError(f"{self._directory}: cannot be written: {error}; free space or choose another place")


def _stored_bytes(key: bytes, value: bytes) -> int:
    """At most what a record takes in the file: large values lie in whole pages."""
    return len(key) + len(value) + _PAGE_ROOM
