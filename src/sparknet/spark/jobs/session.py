"""The Spark session of a run: the one that is there, or one of our own."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession
from pyspark.sql.utils import is_remote

from sparknet.config import Cluster
from sparknet.errors import ClusterError, MissingDependency
from sparknet.spark.jobs.settings import (
    agreed_master,
    check_settings,
    may_be_submitted,
    missing_settings,
    refuse_settings,
)

__all__ = ["check_java", "open_session", "session_for"]


def check_java() -> str:
    """The version line of the Java that Spark will use.

    Raises:
        MissingDependency: there is none, or it is older than 17.
    """
    home = os.environ.get("JAVA_HOME", "")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    remedy = "install Java 17 or 21 (Debian, Ubuntu: apt-get install openjdk-17-jre-headless)"
    if java is None or not Path(java).exists():
        where = f"JAVA_HOME is {home!r}, which holds no bin/java" if home else "there is no java on the PATH"
        raise MissingDependency(f"{where}; {remedy}")
    line = _version_line(java)
    digits = line.partition('"')[2].split(".")[0].rstrip('"')
    if not digits.isdigit() or int(digits) < 17:
        raise MissingDependency(f"{java} says {line!r}; Spark 4 needs 17 or newer: {remedy}")
    return line


@cache  # the command asks before it begins, and again before it opens a session
def _version_line(java: str) -> str:
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    return told.splitlines()[0] if told else ""


def open_session(cluster: Cluster, *, workers: int, name: str, log_path: Path, preimport: str = "") -> SparkSession:
    """Open a session as it was submitted; by default embedded in this process with a core per worker.

    What spark-submit, `spark-defaults.conf` or `PYSPARK_SUBMIT_ARGS` say counts; our settings are for where they
    say nothing.

    Args:
        cluster: master and what else concerns Spark.
        workers: cores of an embedded session.
        name: what the application is called, after "sparknet".
        log_path: file that takes what Spark and its Java machine print; it is appended to.
        preimport: modules of the tasks, with spaces between, which are imported before workers are forked; not
            given: those of training.

    Raises:
        MissingDependency: Java is not there.
        ConfigError: the submitter names another master, or has made a setting that would end healthy workers.
        ClusterError: Spark does not start.
    """
    check_java()
    with _own_interrupts():
        # Who names no master and was not submitted gets an embedded session; then the compiler's choice is ours.
        with _spark_starts(cluster, log_path), _quick_java(not may_be_submitted() and not cluster.master):
            said = _submitted()
        refuse_settings(said)
        master = agreed_master(cluster, said, workers=workers)
        ours = missing_settings(cluster, said, master=master, name=name, preimport=preimport)
        # Of a session that Spark's own scripts have not started they mean what they mean to those.
        os.environ.setdefault("PYSPARK_PYTHON", said.get("spark.pyspark.python", sys.executable))
        with _spark_starts(cluster, log_path, master):
            context = SparkContext.getOrCreate(SparkConf().setMaster(master).setAll(list(ours.items())))
            if master.startswith("local"):
                _start_python_daemon(context)
            return SparkSession.builder.getOrCreate()


def _submitted() -> dict[str, str]:
    """What the submitter said, from the Java machine, which is started if there is none; {} if it is a server's."""
    # The machine without a context: a context could no longer be told of anything.
    SparkContext._ensure_initialized()  # pyright: ignore[reportPrivateUsage]
    return dict(SparkConf().getAll())


@contextmanager
def _spark_starts(cluster: Cluster, log_path: Path, master: str = "") -> Generator[None]:
    """Tell what Spark says meanwhile to the log, and what it fails of as our error."""
    master = master or cluster.master
    try:
        with _stderr_into(log_path):
            yield
    except Exception as error:  # py4j and pyspark raise many kinds; all mean that there is no session
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = f" with master {master}" if master else ""
        # The Java machine of spark-submit is not ours, and has written to where it was started.
        words = "on standard error" if "PYSPARK_GATEWAY_PORT" in os.environ else f"in {log_path}"
        raise ClusterError(
            f"Spark does not start{where}: {reason}; its own words are {words}, and `sparknet doctor` looks for "
            "the cause"
        ) from error


@contextmanager
def _quick_java(wanted: bool) -> Generator[None]:
    """Let an embedded Java machine compile quickly, and not for the long run.

    Starting it is most of what a short run waits for: 1.2 s less of 4, and 5 % more for preparing a large CSV, the
    only thing of ours that the Java machine itself works at.
    """
    name = "JDK_JAVA_OPTIONS"
    before = os.environ.get(name)
    if wanted:
        # First, so that the user's own word counts; not in Spark's settings, where it would replace the user's.
        os.environ[name] = f"-XX:TieredStopAtLevel=1 {before or ''}".strip()
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def _start_python_daemon(context: SparkContext) -> None:
    """Let the daemon that forks Python workers import torch while Spark's SQL starts, and not after it."""
    # Spark starts one daemon for each environment that tasks ask for, and those of SQL ask for this variable.
    context.environment["SPARK_SIMPLIFIED_TRACEBACK"] = "1"

    def ask() -> None:
        # Nobody waits for this: who needs the daemon asks again, and hears then what is wrong.
        with suppress(Exception):
            context.parallelize([0], 1).count()

    threading.Thread(target=ask, name="python-daemon", daemon=True).start()


@contextmanager
def _own_interrupts() -> Generator[None]:
    """Keep this process's handler of Ctrl-C: we end our jobs ourselves.

    The one that Spark installs talks to the Java machine from within whatever call the interrupt has just cut into,
    which breaks the connection that both use.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


@contextmanager
def _stderr_into(path: Path) -> Generator[None]:
    """Let processes that are started meanwhile, the Java machine above all, write their stderr to a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def session_for(
    cluster: Cluster,
    given: SparkSession | None = None,
    *,
    workers: int,
    name: str,
    log_path: Path,
    preimport: str = "",
) -> Generator[SparkSession]:
    """The given session, or the active one, left as it is; else one of our own, stopped at the end.

    The arguments beside `given` are those of `open_session`.

    Raises:
        ConfigError: the session is on another master than was named, or has settings that would end healthy
            workers.
    """
    session = given or SparkSession.getActiveSession()
    # The active session is a thread's; a context that another thread made is the user's all the same.
    if session is None and SparkContext._active_spark_context is not None:  # pyright: ignore[reportPrivateUsage]
        session = SparkSession.builder.getOrCreate()
    if session is not None:
        check_settings(cluster, session, {} if is_remote() else _submitted())
        yield session
        return
    session = open_session(cluster, workers=workers, name=name, log_path=log_path, preimport=preimport)
    try:
        yield session
    except BaseException:
        # The Java machine, or a call to it that an interrupt cut, may be what failed: that error counts.
        with suppress(Exception), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unable to cleanly shutdown Spark JVM", RuntimeWarning)
            session.stop()
        raise
    session.stop()
