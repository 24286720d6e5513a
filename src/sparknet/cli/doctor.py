"""`sparknet doctor`: one line per check, ok or what to do."""

import argparse
import importlib
import platform
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparknet.config import Cluster
from sparknet.errors import MissingDependency, RunDirError, SparkNetError
from sparknet.reporting.table import Mark, print_checks

__all__ = ["Check", "Examination", "Finding", "run"]

Finding = tuple[Mark, str, str]
"""Mark, name of the check, and what was found or is to be done."""

LEAST_FREE_BYTES = 10**9
"""Less free space than this where runs go is worth a warning."""
_PACKAGES = ("pyspark", "torch", "pyarrow")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing to look at."""

    name: str
    look: Callable[[], str]
    """Returns what was found; raises SparkNetError, which names the remedy, or UserWarning."""
    needs: tuple[str, ...] = ()
    """Checks without which this one cannot be made."""


class Examination:
    """Makes checks in order and remembers how they went.

    Attributes:
        failed: names of the checks that failed.
        missed: names of the checks that could not be made.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.missed: list[str] = []

    def make(self, checks: Iterable[Check]) -> Iterator[Finding]:
        """Make one check after the other and yield each finding at once."""
        for check in checks:
            lacking = [name for name in check.needs if name in (*self.failed, *self.missed)]
            if lacking:
                self.missed.append(check.name)
                yield "skipped", check.name, f"not checked: needs {' and '.join(lacking)}"
            else:
                yield self._make(check)

    def _make(self, check: Check) -> Finding:
        try:
            return "ok", check.name, check.look()
        except UserWarning as warning:
            return "warning", check.name, str(warning)
        except SparkNetError as error:
            finding = str(error)
        except Exception as error:  # whatever it is, the other checks may still tell something
            finding = f"{type(error).__name__}: {error}"
        self.failed.append(check.name)
        return "failed", check.name, finding


def run(arguments: argparse.Namespace) -> int:
    """Make all checks; 0 when none failed, else 1."""
    examination = Examination()
    # Not below --run-dir: whether that can be written is one of the questions.
    place = Path(tempfile.mkdtemp(prefix="sparknet-doctor-"))
    log_path = place / "spark.log"
    keep_log = False
    try:
        print_checks(_findings(arguments, examination, log_path=log_path))
        # Set after the last check, so that an interrupt leaves no directory behind.
        keep_log = bool(examination.failed) and log_path.exists()
    finally:
        if not keep_log:
            shutil.rmtree(place, ignore_errors=True)
    if not examination.failed:
        print("Everything a run needs is there.")
        return 0
    missed = f", {len(examination.missed)} could not be made" if examination.missed else ""
    print(f"Checks failed: {len(examination.failed)}{missed}. Follow the first remedy and run this again.")
    if keep_log:
        print(f"What Spark said is in {log_path}.")
    return 1


def _findings(arguments: argparse.Namespace, examination: Examination, *, log_path: Path) -> Iterator[Finding]:
    yield from examination.make(
        [
            Check(name="Python", look=lambda: f"{platform.python_version()} at {sys.executable}"),
            Check(name="packages", look=_look_at_packages),
            Check(name="GPUs", look=_look_at_gpus, needs=("packages",)),
            Check(name="disk", look=lambda: _look_at_disk(arguments.run_dir), needs=("packages",)),
        ]
    )
    # The cluster's checks import these packages: without them they are told as missed, one line each.
    if "packages" in examination.failed:
        names = ("Java", "Spark", "workers", "ports", "routes", "store")
        yield from examination.make([Check(name=name, look=str, needs=("packages",)) for name in names])
        return
    from sparknet.spark.doctor import ClusterChecks  # only now is it known that it can be imported
    from sparknet.spark.jobs.session import check_java

    # Where the driver works, whose directory holds prepared data unless data.store says otherwise.
    local = "disk" not in examination.failed and _local_path(arguments.run_dir)
    run_dir = local or Path(tempfile.gettempdir())
    cluster = Cluster(master=arguments.master, driver_host=arguments.driver_host, driver_port=arguments.driver_port)
    with ClusterChecks(cluster=cluster, workers=arguments.workers, run_dir=run_dir, log_path=log_path) as checks:
        yield from examination.make(
            [
                Check(name="Java", look=check_java),
                Check(name="Spark", look=checks.start_spark, needs=("Java",)),
                Check(name="workers", look=checks.look_at_workers, needs=("Spark",)),
                Check(name="ports", look=checks.look_at_ports, needs=("workers",)),
                Check(name="routes", look=checks.look_at_routes, needs=("ports",)),
                Check(name="store", look=checks.look_at_store, needs=("workers", "disk")),
            ]
        )


def _look_at_packages() -> str:
    found: list[str] = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.import_module(name).__version__}")
        except Exception as error:  # a broken installation may raise anything while it is imported
            raise MissingDependency(
                f"{name} cannot be imported by {sys.executable}: {error}; install it with: "
                f"{sys.executable} -m pip install --force-reinstall {name}"
            ) from error
    return ", ".join(found)


def _look_at_gpus() -> str:
    import torch  # it is one of the packages that were found

    from sparknet.spark.devices.gpus import host_gpus

    gpus, build = host_gpus(), torch.version.cuda
    if not gpus:
        return f"none here; torch is built for {f'CUDA {build}' if build else 'the CPU'}"
    named = ", ".join(f"{gpu.index}: {gpu.name} ({gpu.memory})" for gpu in gpus)
    if build is None:
        raise UserWarning(
            f"{named}, driver {gpus[0].driver}, and torch {torch.__version__} is built for the CPU: install a "
            "build for CUDA, or nothing will use them"
        )
    return f"{named}; driver {gpus[0].driver}, torch for CUDA {build}"


def _local_path(where: str) -> Path | None:
    """The path that names a run directory; None: it is in a store."""
    from sparknet.training.run_files.run_place import run_place  # pyarrow is one of the packages that were found

    return run_place(where).local


def _look_at_disk(where: str) -> str:
    local = _local_path(where)
    if local is not None:
        return _look_at_free(local)
    _look_at_remote(where)
    return f"{_look_at_free(Path(tempfile.gettempdir()))}; {where} can be written"


def _look_at_remote(where: str) -> None:
    from sparknet.training.run_files.run_place import run_place

    probe, secret = run_place(where) / f".doctor-{secrets.token_hex(8)}", secrets.token_bytes(8)
    probe.write(secret)
    try:
        if probe.read() != secret:
            raise RunDirError(f"{probe} holds other bytes than were written: choose another --run-dir")
    finally:
        probe.delete()


def _look_at_free(run_dir: Path) -> str:
    # The nearest directory that exists: the run's own is made later, on the same disk.
    place = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.exists())
    if not place.is_dir():
        raise RunDirError(f"{place} is a file, so {run_dir} cannot be a directory: choose another --run-dir")
    free = shutil.disk_usage(place).free
    finding = f"{free / 1e9:,.1f} GB free where runs go ({run_dir})"
    if free < LEAST_FREE_BYTES:
        raise UserWarning(f"{finding}; checkpoints and prepared data may not fit: free space or move --run-dir")
    return finding
