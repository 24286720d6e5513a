"""The run's event log: one JSON object a line, flushed line by line.

docs/events.md lists the kinds and their fields. Units stand in the keys.
"""

import contextlib
import json
import os
import time
from pathlib import Path
from types import TracebackType

from sparknet.errors import RunDirError

__all__ = ["EventLog"]


class EventLog:
    """Appends to `events.jsonl`; a resumed run goes on in the same file.

    Args:
        run_dir: the run directory.
        began: unix time at which this process began the run.
    """

    def __init__(self, run_dir: Path, began: float) -> None:
        self.path = run_dir / "events.jsonl"
        self._began = began
        try:
            # By lines: whoever follows the file sees each record when it is told, and a kill costs at most one.
            self._file = self.path.open("a", encoding="utf-8", buffering=1)
            # Else the first record of now would go on the line that was cut off, and both would be lost.
            if self._cut_off():
                self._file.write("\n")
        except OSError as error:
            raise RunDirError(f"{self.path} cannot be written: {error}; choose another --run-dir") from error

    def _cut_off(self) -> bool:
        """Whether the process before this one was killed in the middle of a line."""
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"

    def write(self, event: str, **fields: object) -> dict[str, object]:
        """Append one record and return it.

        Raises:
            RunDirError: the disk is full or gone.
        """
        now = time.time()
        stamp = {"time": round(now, 3), "elapsed_seconds": round(now - self._began, 3)}
        record: dict[str, object] = {**stamp, "event": event, **fields}
        try:
            self._file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunDirError(
                f"{self.path} cannot be written: {error}; free space there, then resume the run"
            ) from error
        return record

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # a line that the disk refused; `write` has said so
            self._file.close()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
