"""A standalone cluster of a test's own: a master and workers on free ports, each ended with the test's process."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyspark

_PATIENCE_SECONDS = 90.0
_SPARK_HOME = Path(pyspark.__file__).parent
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_LIBC = ctypes.CDLL(None)


class Standalone:
    """A master and its workers, which are processes of this host.

    Args:
        directory: for their logs and work directories.
        workers: for each its cores.
        gpus: addresses that a worker's discovery script prints, for each worker; (): it offers none.

    Attributes:
        url: the master's, as `spark.master` takes it.
        ui: address of the master's pages, which answers `/json/`.
    """

    def __init__(self, directory: Path, *, workers: Sequence[int], gpus: Sequence[Sequence[str]] = ()) -> None:
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        port, ui_port = _free_port(), _free_port()
        self.url, self.ui = f"spark://127.0.0.1:{port}", f"http://127.0.0.1:{ui_port}"
        try:
            self._start("master", "master.Master", "--port", str(port), "--webui-port", str(ui_port))
            self._wait_for_workers(0)
            for number, cores in enumerate(workers):
                offered = list(gpus[number]) if gpus else []
                self._start_worker(f"worker{number}", cores, offered)
            self._wait_for_workers(len(workers))
        except BaseException:
            self.close()
            raise

    def state(self) -> dict[str, Any]:
        """What the master tells of itself and its workers."""
        with urllib.request.urlopen(f"{self.ui}/json/", timeout=5) as answer:
            return json.load(answer)

    def add_worker(self, cores: int) -> None:
        """Start another worker, and wait until the master knows it."""
        count = self.state()["aliveworkers"]
        self._start_worker(f"worker{len(self._processes)}", cores, [])
        self._wait_for_workers(count + 1)

    def close(self) -> None:
        """End all processes, workers first."""
        for process in reversed(self._processes):
            process.kill()
            process.wait(_PATIENCE_SECONDS)

    def __enter__(self) -> "Standalone":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_worker(self, name: str, cores: int, gpus: Sequence[str]) -> None:
        options: list[str] = []
        if gpus:
            script = self._directory / f"{name}-gpus.sh"
            told = json.dumps({"name": "gpu", "addresses": list(gpus)})
            script.write_text(f"#!/bin/sh\necho '{told}'\n")
            script.chmod(0o755)
            options = [
                f"-Dspark.worker.resource.gpu.amount={len(gpus)}",
                f"-Dspark.worker.resource.gpu.discoveryScript={script}",
            ]
        arguments = ["--cores", str(cores), "--memory", "1g", "--webui-port", "0", "--work-dir", f"{name}-work"]
        self._start(name, "worker.Worker", *arguments, self.url, options=options)

    def _start(self, name: str, kind: str, *arguments: str, options: Sequence[str] = ()) -> None:
        java = str(Path(os.environ["JAVA_HOME"]) / "bin" / "java") if os.environ.get("JAVA_HOME") else "java"
        command = [
            *(java, "-Xmx256m", *options, "-cp", f"{_SPARK_HOME}/jars/*"),
            *(f"org.apache.spark.deploy.{kind}", "--host", "127.0.0.1", *arguments),
        ]
        # Executors inherit the variable, and do not find their classes without it.
        environment = {**os.environ, "SPARK_SCALA_VERSION": "2.13", "SPARK_HOME": str(_SPARK_HOME)}
        with (self._directory / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    command,
                    cwd=self._directory,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    # A test that is killed leaves no Java machines behind.
                    preexec_fn=lambda: _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGKILL),
                )
            )

    def _wait_for_workers(self, count: int) -> None:
        until = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < until:
            with suppress(OSError):
                if self.state()["aliveworkers"] >= count:
                    return
            for process in self._processes:
                assert process.poll() is None, f"{process.args} has ended: see {self._directory}/*.log"
            time.sleep(0.1)
        raise AssertionError(f"no master with {count} workers: see {self._directory}/*.log")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
