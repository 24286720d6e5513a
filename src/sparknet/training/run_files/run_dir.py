"""The run directory: everything about a run, used by one process at a time, on a disk or in a store."""

import json
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from filelock import FileLock, Timeout

from sparknet.config import RunConfig, load_config, write_config
from sparknet.data.storage.place import Place
from sparknet.errors import DataError, RunDirError
from sparknet.training.run_files.checkpoint import Checkpoints
from sparknet.training.run_files.remote_copy import CONFIG, RESULT, RemoteCopy
from sparknet.training.run_files.remote_run import RemoteRun, holds_run
from sparknet.training.run_files.run_place import run_place
from sparknet.whole_files import tidy, whole_file

__all__ = ["RunDir", "RunFiles", "reading_run"]


class RunFiles:
    """What a run left, to look at: nobody is kept from writing it.

    Attributes:
        path: a directory of this machine that holds the configuration, the result and what columns go through.
        uri: where the run is, as a path or URI.
    """

    def __init__(self, path: Path, uri: str) -> None:
        self.path = path
        self.uri = uri

    @property
    def is_remote(self) -> bool:
        """Whether the run is in a store, and `path` only a place to work in."""
        return self.uri != str(self.path)

    def load_config(self, overrides: Iterable[str] = ()) -> RunConfig:
        """The configuration that the run was last started with, with settings as `override` takes them.

        Raises:
            ConfigError: a setting is at fault.
        """
        return load_config(self.path / CONFIG, overrides)

    def store(self, config: RunConfig) -> str:
        """Where prepared data lie: a path or URI."""
        # Of a run in a store in that store: who goes on with it elsewhere must hold out the same rows, and read the
        # same bytes in the same order.
        return config.data.store or (self._named("store") if self.is_remote else str(self.path / "store"))

    def load_result(self) -> dict[str, Any] | None:
        """The summary of a finished run, or None while it is not finished.

        Raises:
            RunDirError: it is damaged.
        """
        try:
            return json.loads((self.path / RESULT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunDirError(
                f"{self._named(RESULT)} is damaged: {error}; delete it, then resume the run"
            ) from error

    def _named(self, name: str) -> str:
        return f"{self.uri.rstrip('/')}/{name}"


class RunDir(RunFiles):
    """Owns a run directory from `create` or `reopen` until `close`.

    It holds `config.toml` (as resolved), `training_log_<millis>.txt`, `events.jsonl`, `checkpoints/`, `store/`
    (unless the configuration names another store), `model/` and `result.json`. Of one in a store all is there as
    well as in `path`, some seconds later, but `store/`, which is there alone.
    """

    def __init__(self, path: Path, *, remote: RemoteRun | None = None, uri: str = "") -> None:
        super().__init__(path, uri or str(path))
        self._remote = remote
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
    def create(cls, where: str | Path, config: RunConfig) -> "RunDir":
        """Make the directory of a new run.

        Args:
            where: a path, or a URI of a store; that is reached as the configuration says (`data.s3_endpoint`).
            config: of the run.

        Raises:
            RunDirError: it cannot be made or written, holds a run already, or is in use.
            UsageError: it is no path and no URI of a store that can be written.
        """
        place = run_place(where, s3_endpoint=config.data.s3_endpoint)
        if place.local is None:
            return cls._create_remote(place, config)
        path = place.local
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
    def _create_remote(cls, place: Place, config: RunConfig) -> "RunDir":
        _refuse_remote_run(place)
        remote = RemoteRun.open(place)
        run_dir = cls(remote.directory, remote=remote, uri=place.uri)
        try:
            _refuse_remote_run(place)  # as above: another may have come and gone meanwhile
            run_dir.save_config(config)
            remote.begin()
        except BaseException:
            run_dir.close()
            raise
        return run_dir

    @classmethod
    def reopen(cls, where: str | Path, *, s3_endpoint: str = "") -> "RunDir":
        """Open the directory of an earlier run to go on in it.

        Args:
            where: a path, or a URI of a store.
            s3_endpoint: an S3-compatible server; not given: as the environment says.

        Raises:
            RunDirError: it holds no run, another process uses it, or it cannot be read or written.
            UsageError: it is no path and no URI of a store that can be written.
        """
        place = run_place(where, s3_endpoint=s3_endpoint)
        cls.check(where, s3_endpoint=s3_endpoint)
        if place.local is not None:
            return cls._reopen_local(place.local)
        remote = RemoteRun.open(place)
        run_dir = cls(remote.directory, remote=remote, uri=place.uri)
        try:
            remote.fetch()
            remote.keep = run_dir.load_config().run.keep_checkpoints
            remote.begin()
        except BaseException:
            run_dir.close()
            raise
        return run_dir

    @classmethod
    def _reopen_local(cls, path: Path) -> "RunDir":
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
    def is_there(where: str | Path, *, s3_endpoint: str = "") -> bool:
        """Whether a path or URI holds a run.

        Raises:
            RunDirError: it cannot be reached.
            UsageError: it is no path and no URI of a store.
        """
        place = run_place(where, s3_endpoint=s3_endpoint)
        return (place.local / CONFIG).is_file() if place.local else holds_run(place)

    @staticmethod
    def check(where: str | Path, *, s3_endpoint: str = "") -> None:
        """Refuse a path or URI that holds no run.

        Raises:
            RunDirError: it does not, or cannot be reached.
            UsageError: it is no path and no URI of a store.
        """
        if not RunDir.is_there(where, s3_endpoint=s3_endpoint):
            raise RunDirError(f"{where} holds no run (there is no {CONFIG} in it); give a run's directory")

    def save_config(self, config: RunConfig) -> None:
        """Record the configuration that the run goes on with.

        Raises:
            RunDirError: it cannot be written.
        """
        try:
            write_config(config, self.path / CONFIG)
            if self._remote:
                self._remote.keep = config.run.keep_checkpoints
        except OSError as error:
            raise RunDirError(
                f"{self.path / CONFIG} cannot be written: {error.strerror or error}; choose another --run-dir"
            ) from error

    def save_result(self, result: Mapping[str, object]) -> None:
        """Write the summary, whole or not at all.

        Raises:
            RunDirError: it cannot be written.
        """
        try:
            # Its presence says that the run is finished, so it must never be there in part.
            with whole_file(self.path / RESULT) as draft:
                draft.write_text(json.dumps(dict(result), indent=1), encoding="utf-8")
        except OSError as error:
            raise RunDirError(
                f"{self.path / RESULT} cannot be written: {error.strerror or error}; make room there, then resume"
            ) from error

    def fetch_checkpoints(self, checkpoints: Checkpoints) -> None:
        """Have here what the run goes on from; a directory on a disk has it.

        Raises:
            RunDirError: it cannot be fetched.
        """
        if self._remote:
            self._remote.fetch_checkpoints(checkpoints)

    def watch(self, on_error: Callable[[], None]) -> None:
        """Have `on_error` called, on some thread, when `check_up` has something to raise."""
        if self._remote:
            self._remote.watch(on_error)

    def check_up(self) -> None:
        """Do nothing as long as the directory is ours and can be written; never waits.

        Raises:
            RunDirError: a store cannot be written any more, or another driver has taken its directory over.
        """
        if self._remote:
            self._remote.check()

    def nudge(self) -> None:
        """Say that something has been written that should be in the store soon; never waits."""
        if self._remote:
            self._remote.nudge()

    def catch_up(self) -> None:
        """Wait until a store has what has been written up to now.

        Raises:
            RunDirError: it cannot be written.
        """
        if self._remote:
            self._remote.catch_up()

    def as_found(self, value: object) -> object:
        """Paths in the working directory, or texts or lists of them, as others find them: in the store."""
        if not self._remote:
            return value
        if isinstance(value, list | tuple):
            return [self.as_found(item) for item in cast("Sequence[object]", value)]
        return value.replace(str(self.path), self.uri.rstrip("/")) if isinstance(value, str) else value

    def close(self) -> None:
        """Let others use the directory; of one in a store, when all that was written is there.

        Raises:
            RunDirError: a store did not take it; it stays in `path`.
        """
        try:
            if self._remote:
                self._remote.close()
        finally:
            self._lock.release()

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except RunDirError as unsent:
            if error is None:
                raise
            if unsent is not error:  # the run may have ended for this very reason
                for line in (str(unsent), *getattr(unsent, "__notes__", ())):
                    error.add_note(line)


@contextmanager
def reading_run(where: str | Path, *, s3_endpoint: str = "") -> Generator[RunFiles]:
    """Look at a run, finished or not, without owning its directory; what is in a store is fetched first.

    Args:
        where: a path, or a URI of a store.
        s3_endpoint: an S3-compatible server; not given: as the environment says.

    Raises:
        RunDirError: it holds no run, or cannot be read.
        UsageError: it is no path and no URI of a store.
    """
    place = run_place(where, s3_endpoint=s3_endpoint)
    RunDir.check(where, s3_endpoint=s3_endpoint)
    if place.local is not None:
        path = place.local.resolve()
        yield RunFiles(path, str(path))
        return
    with tempfile.TemporaryDirectory(prefix="sparknet-run-", ignore_cleanup_errors=True) as directory:
        path = Path(directory).resolve()
        try:
            RemoteCopy(path, place, confirm=lambda: None).fetch_files()
        except (DataError, OSError) as error:
            raise RunDirError(f"{place} cannot be fetched: {error}") from error
        yield RunFiles(path, place.uri)


def _refuse_remote_run(place: Place) -> None:
    if holds_run(place):
        _refuse(place.uri)


def _refuse_run(path: Path) -> None:
    if (path / CONFIG).exists():
        _refuse(str(path))


def _refuse(where: str) -> None:
    raise RunDirError(
        f"{where} holds a run already; go on with `sparknet resume {where}`, or choose another --run-dir"
    )
