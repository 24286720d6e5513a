"""What must work before a run can: Spark, its Python workers, the driver's port, the routes, the store."""

import contextlib
import functools
import platform
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import torch
from pyspark import TaskContext
from pyspark.sql import SparkSession

import sparknet
from sparknet.config import Cluster
from sparknet.errors import ClusterError, DataError, SparkNetError, Unauthorized
from sparknet.spark.jobs.addresses import find_driver_host
from sparknet.spark.jobs.jobs import Report, Task, collect_reports, numbered
from sparknet.spark.jobs.session import session_for
from sparknet.spark.jobs.settings import is_local
from sparknet.spark.running.driver_client import DriverAddress, DriverClient
from sparknet.spark.running.driver_service import DriverService
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.messages import Heartbeat
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import Rules
from sparknet.training.run_files.checkpoint import Checkpoints
from sparknet.training.sync.gloo_groups import Groups

__all__ = ["ClusterChecks"]

_FIRST_JOB_SECONDS = 180.0
"""An executor may have to start, and every Python worker imports torch."""
_JOB_SECONDS = 90.0
_ROUTE_SECONDS = 30.0
_SMALL_FLOATS = 1_000
_LARGE_FLOATS = 4_000_000  # 16 MB
_REPETITIONS = 3
_EVER = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class _RoutePlan:
    """What a worker must know to find the driver and the other workers."""

    driver: DriverAddress
    workers: int


class ClusterChecks:
    """Checks that need Spark; each uses what the ones before it have opened, and leaving closes all.

    Args:
        cluster: Spark master URL, empty for an embedded session, and where the driver is to be found.
        workers: how many workers to ask.
        run_dir: where runs, and with them the store, will be.
        log_path: file that takes what Spark prints.
    """

    def __init__(self, *, cluster: Cluster, workers: int, run_dir: Path, log_path: Path) -> None:
        self._cluster = cluster
        self._workers = workers
        self._run_dir = run_dir.absolute()
        self._log_path = log_path
        self._stack = ExitStack()
        self._spark: SparkSession | None = None
        self._address: DriverAddress | None = None

    def __enter__(self) -> "ClusterChecks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_spark(self) -> str:
        """Open a session.

        Raises:
            ClusterError: it does not start.
        """
        began = time.perf_counter()
        try:
            self._spark = self._stack.enter_context(
                session_for(self._cluster, workers=self._workers, name="doctor", log_path=self._log_path)
            )
        except ClusterError as error:
            raise ClusterError(
                f"Spark does not start{self._on_master()}: {self._reason(error)}; correct --master, or look into "
                "all that Spark said, below"
            ) from error
        seconds = time.perf_counter() - began
        return f"{self._spark.version} started in {seconds:.1f} s{self._on_master()}"

    def look_at_workers(self) -> str:
        """Hold the workers' Python and packages against the driver's, and time their start.

        Raises:
            ClusterError: they cannot start, or differ.
        """
        began = time.perf_counter()
        # Twice: the first start pays for executors and imports, the second shows what a lost worker will cost.
        self._ask(describe_worker, "starting workers", limit_seconds=_FIRST_JOB_SECONDS)
        first = time.perf_counter() - began
        began = time.perf_counter()
        reports = self._ask(describe_worker, "starting workers")
        later = time.perf_counter() - began
        for report in reports:
            _compare(report)
        timing = f"first start {first:.1f} s, then {later:.1f} s"
        if not all(report.values["preimport"] for report in reports):
            # No error: a run works without the daemon, only slower after a failure.
            raise UserWarning(
                f"{_count(self._workers)} with the driver's versions, {timing}; but the pre-import daemon is not "
                "active, so a lost worker takes long to come back: set spark.python.daemon.module to "
                "sparknet.spark.running.preimport"
            )
        return f"{_count(self._workers)} with the driver's versions, {timing}, pre-import daemon active"

    def look_at_ports(self) -> str:
        """Open the driver service and let every worker call it, with the right token and with a wrong one.

        Raises:
            ClusterError: it cannot be opened, a worker does not reach it, or a wrong token is let in.
        """
        spark = self._session()
        token = secrets.token_urlsafe(32)
        # No run goes on here: the coordinator waits for workers that never register, and decides nothing.
        rules = Rules(slots=self._workers, rounds=1, plan=RoundPlan(local_steps=1), start_seconds=_EVER)
        service = self._stack.enter_context(
            DriverService(
                Coordinator(rules, now=time.monotonic()),
                # Nothing is written there: no worker of these checks sends a checkpoint.
                Checkpoints(self._log_path.parent, 2),
                at=find_driver_host(spark, self._cluster, workers=self._workers),
                token=token,
            )
        )
        self._address = DriverAddress(uri=service.address, token=token)
        plan = _RoutePlan(driver=self._address, workers=self._workers)
        for report in self._ask(functools.partial(call_driver, plan), "calling the driver service"):
            if not report.values["refused"]:
                raise ClusterError(
                    f"the driver service at {service.address} answered worker {report.slot} on {report.host} in "
                    "spite of a wrong token; it must refuse: do not run on an open network, and report this"
                )
        return f"workers reach the driver service at {service.address} with the token, a wrong one is refused"

    def look_at_routes(self) -> str:
        """Let all workers meet in one gloo group and sum a small and a large buffer.

        Raises:
            ClusterError: they do not reach each other.
        """
        if self._workers == 1:
            return "one worker has nobody to meet; try more with --workers"
        assert self._address is not None, "look_at_ports comes first"
        plan = _RoutePlan(driver=self._address, workers=self._workers)
        try:
            # All tasks must run at once to meet; with too few cores the first ones wait for those that cannot
            # start.
            reports = self._ask(functools.partial(meet_peers, plan), "meeting the other workers")
        except SparkNetError as error:
            raise ClusterError(
                f"{error}; all workers must run at the same time and reach each other on every port: give Spark "
                f"{self._workers} free cores, and open the firewall between its machines"
            ) from error
        small = max(report.values["small_seconds"] for report in reports)
        # The slowest's: an all-reduce is done when everybody has it.
        large = max(report.values["large_seconds"] for report in reports)
        speed = 4 * _LARGE_FLOATS / 1e6 / large
        return (
            f"{_count(self._workers)} meet; all-reduce of {4 * _SMALL_FLOATS / 1e3:g} kB in {1e3 * small:.1f} ms, "
            f"of {4 * _LARGE_FLOATS / 1e6:g} MB in {1e3 * large:.0f} ms ({speed:,.0f} MB/s)"
        )

    def look_at_store(self) -> str:
        """Let every worker read and write a directory where runs will be, and tell whether it is shared.

        Raises:
            DataError: the driver cannot write it.
        """
        remedy = "choose a --run-dir that can be written"
        # What is made here goes again: a check leaves no directories behind.
        made = [path for path in (self._run_dir, *self._run_dir.parents) if not path.exists()]
        place: Path | None = None
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            place = Path(tempfile.mkdtemp(dir=self._run_dir, prefix=".doctor-"))
            place.chmod(0o777)  # workers may run as another user
            secret = secrets.token_hex(8)
            (place / "driver").write_text(secret, encoding="utf-8")
            self._ask(functools.partial(touch_store, str(place), secret), f"using {self._run_dir}")
            # Both directions: a container may see the driver's files through a layer that keeps its own writes to
            # itself.
            unseen = [slot for slot in range(self._workers) if not (place / f"worker-{slot}").exists()]
        except OSError as error:
            raise DataError(f"{self._run_dir} cannot be written: {error.strerror or error}; {remedy}") from error
        finally:
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
            for path in made:
                with contextlib.suppress(OSError):  # somebody else uses it meanwhile
                    path.rmdir()
        if unseen:
            return (
                f"the driver writes {self._run_dir}, which worker {unseen[0]} does not: shards go through the "
                "driver; set data.store to a shared directory or s3:// where that is too slow"
            )
        return f"driver and workers read and write {self._run_dir}"

    def _ask(self, task: Task, doing: str, *, limit_seconds: float = _JOB_SECONDS) -> list[Report]:
        frame = numbered(self._session(), self._workers, tasks=self._workers)
        return collect_reports(frame, task, doing=doing, limit_seconds=limit_seconds)

    def _session(self) -> SparkSession:
        assert self._spark is not None, "start_spark comes first"
        return self._spark

    def _reason(self, error: BaseException) -> str:
        """Why Spark does not start: what its Java machine died of says more than what Python saw of it."""
        said = self._log_path.read_text(encoding="utf-8", errors="replace") if self._log_path.exists() else ""
        for pattern in (r"^Caused by: (.+)", r'^Exception in thread "\S+" (.+)', r" ERROR (.+)"):
            found = re.search(pattern, said, re.MULTILINE)
            if found:
                return found[1].strip()
        lines = str(error.__cause__ or error).strip().splitlines()
        return lines[0] if lines else type(error).__name__

    def _on_master(self) -> str:
        submitted = (self._spark.conf.get("spark.master", "") or "") if self._spark is not None else ""
        master = self._cluster.master or ("" if is_local(submitted) else submitted)
        return f" on {master}" if master else ", embedded"


def describe_worker(batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """The task: what this worker runs."""
    for _ in batches:
        pass
    # a forked worker keeps the main module of the daemon that it was forked from
    main = getattr(sys.modules["__main__"], "__spec__", None)
    yield {**_versions(), "preimport": main is not None and main.name == "sparknet.spark.running.preimport"}


def call_driver(plan: _RoutePlan, batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """The task: call the driver service with the token and without."""
    who = _who(batches)
    with contextlib.closing(DriverClient(plan.driver, beat_seconds=10)) as client:
        client.tell(who)
    refused = False
    with contextlib.closing(DriverClient(replace(plan.driver, token="wrong"), beat_seconds=10)) as stranger:
        try:
            stranger.tell(who)
        except Unauthorized:
            refused = True
    yield {"refused": refused}


def meet_peers(plan: _RoutePlan, batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """The task: meet the other workers and sum buffers with them."""
    slot = _who(batches).slot
    torch.set_num_threads(1)
    with contextlib.closing(DriverClient(plan.driver)) as client:
        groups = Groups(client, host=plan.driver.local_host(), timeout_seconds=_ROUTE_SECONDS)
        try:
            group = groups.enter(0, slot, plan.workers)

            def seconds_for(floats: int) -> float:
                best = _EVER
                for _ in range(_REPETITIONS):
                    buffer = torch.ones(floats)
                    began = time.perf_counter()
                    group.sum(buffer)
                    # The best of some: the first one opens connections.
                    best = min(best, time.perf_counter() - began)
                    # A route that answers and a sum that is right are two things.
                    if not bool((buffer == plan.workers).all()):
                        raise ClusterError(f"the sum of {plan.workers} ones is {buffer.min()} to {buffer.max()}")
                return best

            yield {"small_seconds": seconds_for(_SMALL_FLOATS), "large_seconds": seconds_for(_LARGE_FLOATS)}
        finally:
            groups.leave()


def touch_store(place: str, secret: str, batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """The task: read what the driver wrote, and write a file beside it, where that is possible."""
    slot = _who(batches).slot
    with contextlib.suppress(OSError):  # the driver sees who has written
        if (Path(place) / "driver").read_text(encoding="utf-8") == secret:
            (Path(place) / f"worker-{slot}").write_text(secret, encoding="utf-8")
    yield {}


def _who(batches: Iterator[pa.RecordBatch]) -> Heartbeat:
    for _ in batches:
        pass
    context = TaskContext.get()
    assert context is not None, "Spark runs this in a task"
    return Heartbeat(slot=context.partitionId(), attempt=context.taskAttemptId())


def _versions() -> dict[str, str]:
    return {
        "Python": platform.python_version(),
        "sparknet": sparknet.__version__,
        "torch": torch.__version__,
        "pyarrow": pa.__version__,
    }


def _compare(report: Report) -> None:
    for name, version in _versions().items():
        if report.values[name] != version:
            raise ClusterError(
                f"worker {report.slot} on {report.host} has {name} {report.values[name]} and the driver has "
                f"{version}; they must be the same: install it there, or set PYSPARK_PYTHON to a Python with it"
            )


def _count(workers: int) -> str:
    return f"{workers} worker{'s' if workers > 1 else ''}"
