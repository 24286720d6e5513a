"""The run directory: everything about a run, used by one process at a time."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from sparknet.config import RunConfig, load_config, write_config
from sparknet.errors import RunDirError
from sparknet.whole_files import tidy, whole_file

__all__ = ["RunDir"]

_CONFIG = "config.toml"
_RESULT = "result.json"


class RunDir:
    """Owns a run directory from `create` or `reopen` until `close`.

    It holds `config.toml` (as resolved), `training_log_<millis>.txt`, `events.jsonl`, `checkpoints/`, `store/`
    (unless the configuration names another store), `model/` and `result.json`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # The system drops this lock with the process that holds it (flock): a killed run leaves no stale one.
        self._lock = FileLock(path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunDirError(
                f"{path} is in use by another run; wait for it, end it, or choose another --run-dir"
            ) from None
        except OSError as error:
            raise RunDirError(
                f"{path} cannot be written: {error.strerror or error}; choose another --run-dir"
            ) from error

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> "RunDir":
        """Make the directory of a new run.

        Raises:
            RunDirError: it cannot be made or written, or holds a run already.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_run(path)
            run_dir = cls(path.resolve())  # a change of the current directory must not move the run
        except OSError as error:
            raise RunDirError(
                f"the run directory {path} cannot be made: {error.strerror or error}; choose another --run-dir"
            ) from error
        try:
            # Once more: another process may have made a run here, and ended it, before the lock was taken.
            _refuse_run(path)
            # The configuration makes a directory a run: it is written only when the lock is held.
            run_dir.save_config(config)
        except RunDirError:
            run_dir.close()
            raise
        return run_dir

    @classmethod
    def reopen(cls, path: Path) -> "RunDir":
        """Open the directory of an earlier run to go on in it.

        Raises:
            RunDirError: it holds no run, another process uses it, or it cannot be written.
        """
        cls.check(path)
        run_dir = cls(path.resolve())
        # A driver that was killed while writing leaves its drafts; the lock says that nobody writes them now.
        try:
            tidy(run_dir.path)
            tidy(run_dir.path / "checkpoints")
        except OSError as error:
            run_dir.close()
            raise RunDirError(
                f"what a killed run left in {path} cannot be put right: {error}; make it writable, then resume"
            ) from error
        # Shards that the killed run was preparing. A store elsewhere may be in use by others and is left alone.
        for draft in path.glob("store/.preparing-*"):
            shutil.rmtree(draft, ignore_errors=True)
        for mark in path.glob("store/.seen-*"):
            mark.unlink(missing_ok=True)
        return run_dir

    @staticmethod
    def check(path: Path) -> None:
        """Refuse a path that holds no run.

        Raises:
            RunDirError: it does not.
        """
        if not (path / _CONFIG).is_file():
            raise RunDirError(f"{path} holds no run (there is no {_CONFIG} in it); give a run's directory")

    def load_config(self) -> RunConfig:
        """The configuration that the run was last started with."""
        return load_config(self.path / _CONFIG)

    def save_config(self, config: RunConfig) -> None:
        """Record the configuration that the run goes on with.

        Raises:
            RunDirError: it cannot be written.
        """
        try:
            write_config(config, self.path / _CONFIG)
        except OSError as error:
            raise RunDirError(
                f"{self.path / _CONFIG} cannot be written: {error.strerror or error}; choose another --run-dir"
            ) from error

    def store(self, config: RunConfig) -> str:
        """Where prepared data lie: a path or URI."""
        return config.data.store or str(self.path / "store")

    def load_result(self) -> dict[str, Any] | None:
        """The summary of a finished run, or None while it is not finished.

        Raises:
            RunDirError: it is damaged.
        """
        try:
            return json.loads((self.path / _RESULT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunDirError(
                f"{self.path / _RESULT} is damaged: {error}; delete it, then resume the run"
            ) from error

    def save_result(self, result: Mapping[str, object]) -> None:
        """Write the summary, whole or not at all.

        Raises:
            RunDirError: it cannot be written.
        """
        try:
            # Its presence says that the run is finished, so it must never be there in part.
            with whole_file(self.path / _RESULT) as draft:
                draft.write_text(json.dumps(dict(result), indent=1), encoding="utf-8")
        except OSError as error:
            raise RunDirError(
                f"{self.path / _RESULT} cannot be written: {error.strerror or error}; make room there, then resume"
            ) from error

    def close(self) -> None:
        """Let others use the directory."""
        self._lock.release()

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refuse_run(path: Path) -> None:
    if (path / _CONFIG).exists():
        raise RunDirError(
            f"{path} holds a run already; go on with `sparknet resume {path}`, or choose another --run-dir"
        )
