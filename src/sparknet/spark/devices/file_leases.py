"""GPUs handed out by lock files on their host: for several workers on a machine, with nobody to ask.

The operating system frees a lock when its process ends, however it ends.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparknet.errors import ClusterError
from sparknet.spark.devices.lease import Held
from sparknet.whole_files import whole_file

if TYPE_CHECKING:
    import filelock

__all__ = ["FileLeases"]

_LOOK_SECONDS = 0.2


class FileLeases:
    """A lock file for each GPU in a directory of this host.

    Args:
        directory: not given: one for all users, in the temporary directory.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or Path(tempfile.gettempdir()) / "sparknet-gpus"

    def acquire(self, host: str, gpus: Sequence[str], *, holder: str, wait_seconds: float) -> "FileLease":
        """As the Protocol says; `host` is this one."""
        # Imported here: where a device is given, nobody leases one.
        import filelock

        self._make_directory()
        until = time.monotonic() + wait_seconds
        while True:
            for gpu in gpus:
                lock = filelock.FileLock(self._path(gpu), mode=0o666)
                with contextlib.suppress(filelock.Timeout):
                    lock.acquire(blocking=False)
                    return self._taken(lock, gpu, holder)
            if time.monotonic() >= until:
                holders = "; ".join(str(one) for one in self.held(host) if one.gpu in gpus)
                raise ClusterError(
                    f"all GPUs of {host} are taken: {holders}; end one of them, or use fewer workers"
                )
            time.sleep(_LOOK_SECONDS)

    def held(self, host: str) -> list[Held]:
        """As the Protocol says."""
        found: list[Held] = []
        for path in sorted(self._directory.glob("*.lock")):
            told = self._told(path.stem)
            alive = _is_locked(path)
            since = float(told.get("since", 0)) if alive else time.time()
            found.append(
                Held(
                    host=host,
                    gpu=path.stem,
                    holder=str(told.get("holder", "")) if alive else "",
                    seconds=max(0.0, time.time() - since),
                    alive=alive,
                )
            )
        return found

    def free(self, host: str, gpu: str) -> None:
        """As the Protocol says: a lock of a living process is its own."""
        if self._path(gpu).exists() and _is_locked(self._path(gpu)):
            told = self._told(gpu)
            raise ClusterError(
                f"GPU {gpu} of {host} is locked by {told.get('holder', 'a process')} (process {told.get('pid')}), "
                "which is running; end that process, and the lock is free"
            )

    def _taken(self, lock: "filelock.BaseFileLock", gpu: str, holder: str) -> "FileLease":
        told = self._told(gpu)
        fence = int(told.get("fence", 0)) + 1
        values = {"fence": fence, "holder": holder, "pid": os.getpid(), "since": time.time()}
        with whole_file(self._told_path(gpu)) as draft:
            draft.write_text(json.dumps(values), encoding="utf-8")
        return FileLease(gpu, fence, lock)

    def _make_directory(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            # Of all users: GPUs are the host's. Whoever made it may set it, others need not.
            with contextlib.suppress(PermissionError):
                self._directory.chmod(0o1777)
        except OSError as error:
            raise ClusterError(
                f"{self._directory}: lock files of the GPUs cannot be written: {error}; set TMPDIR to a directory "
                "that all users of this host write"
            ) from error

    def _path(self, gpu: str) -> Path:
        return self._directory / f"{gpu}.lock"

    def _told_path(self, gpu: str) -> Path:
        return self._directory / f"{gpu}.json"

    def _told(self, gpu: str) -> dict[str, Any]:
        """What the last owner wrote; nothing where that cannot be read, since the lock alone decides."""
        try:
            found: object = json.loads(self._told_path(gpu).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return dict(found) if isinstance(found, dict) else {}  # pyright: ignore[reportUnknownVariableType]


class FileLease:
    """A lock that this process holds.

    Attributes:
        gpu: as the lock file is named.
        fence: counts the owners of this GPU.
    """

    def __init__(self, gpu: str, fence: int, lock: "filelock.BaseFileLock") -> None:
        self.gpu = gpu
        self.fence = fence
        self._lock = lock

    @property
    def valid(self) -> bool:
        """As long as it is not released: nobody can take a lock from a living process."""
        return self._lock.is_locked

    def release(self) -> None:
        """Unlock the file."""
        self._lock.release()


def _is_locked(path: Path) -> bool:
    import filelock

    lock = filelock.FileLock(path, mode=0o666)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False
