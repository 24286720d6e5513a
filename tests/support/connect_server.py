"""A Spark Connect server of a test's own, in a process that ends with the test's."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyspark

_PATIENCE_SECONDS = 120.0
_SPARK_HOME = Path(pyspark.__file__).parent
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_LIBC = ctypes.CDLL(None)


class ConnectServer:
    """A server whose tasks run as its master says.

    Args:
        directory: for its log.
        master: where its tasks run.
        settings: further ones, by name.

    Attributes:
        url: as `SPARK_REMOTE` takes it.
        pid: the process.
    """

    def __init__(self, directory: Path, *, master: str, **settings: str) -> None:
        port = _free_port()
        self.url = f"sc://127.0.0.1:{port}"
        told = {
            "spark.connect.grpc.binding.address": "127.0.0.1",
            "spark.connect.grpc.binding.port": str(port),
            "spark.driver.host": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.log.level": "ERROR",
            "spark.python.daemon.module": "sparknet.spark.running.preimport",
            **{key.replace("_", "."): value for key, value in settings.items()},
        }
        options = [word for key, value in told.items() for word in ("--conf", f"{key}={value}")]
        kind = "org.apache.spark.sql.connect.service.SparkConnectServer"
        command = [str(_SPARK_HOME / "bin" / "spark-submit"), "--master", master, *options, "--class", kind]
        self._log = directory / "connect.log"
        environment = {key: value for key, value in os.environ.items() if key != "SPARK_REMOTE"}
        environment |= {"SPARK_HOME": str(_SPARK_HOME), "PYSPARK_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "spark-internal"],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The script becomes the Java machine by exec, and a test that is killed leaves none behind.
                preexec_fn=lambda: _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGKILL),
            )
        self.pid = self._process.pid
        try:
            self._wait_for(port)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_PATIENCE_SECONDS)

    def __enter__(self) -> "ConnectServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_for(self, port: int) -> None:
        until = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError(f"no Connect server: {self._log.read_text(errors='replace')[-3000:]}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
