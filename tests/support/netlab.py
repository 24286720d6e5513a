"""Several hosts on this machine: network namespaces on a bridge, each with directories that no other host sees.

A host has an address, a name, and in place of each private directory an empty one in memory. It needs root and
iproute2; `reason_against` says what is missing. `Cluster` runs a standalone Spark cluster on such hosts.
"""

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyspark

_PATIENCE_SECONDS = 120.0
_SPARK_HOME = Path(pyspark.__file__).parent
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_LIBC = ctypes.CDLL(None)
_PORT, _UI_PORT = 7077, 8080  # each host has all ports to itself


def reason_against():
    """Why there can be no hosts here; empty: there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "unshare", "nsenter", "mount") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} missing: install iproute2 and util-linux"
    name = f"probe{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


def _die_with_the_test():
    """A test that is killed leaves no processes behind; the namespaces' names stay."""
    _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _run(*command):
    subprocess.run(command, check=True, capture_output=True, text=True)


class Netlab:
    """Hosts `lab<hex>-1` to `lab<hex>-N` at 10.77.0.1 to 10.77.0.N, which reach each other and nothing else.

    Args:
        count: of hosts.
        private: directories of which each host has an empty one of its own; they must exist.
        rate: of each host's link, as tc takes it (`100mbit`); not given: as fast as the machine.
    """

    def __init__(self, count: int, *, private: Sequence[Path], rate: str = ""):
        self.prefix = f"lab{secrets.token_hex(2)}"
        self.names = [f"{self.prefix}-{number}" for number in range(1, count + 1)]
        self.addresses = [f"10.77.0.{number}" for number in range(1, count + 1)]
        self._private = [str(path) for path in private]
        self._holders: list[subprocess.Popen] = []
        self._processes: list[subprocess.Popen] = []
        try:
            self._make_network(rate)
            for number in range(count):
                self._make_host(number)
        except BaseException:
            self.close()
            raise

    def start(self, host: int, *command: str, log: Path, environment: dict[str, str] | None = None, cwd: str = "/"):
        """Start a command on host number `host` (from 1); its words go to `log`, which the caller sees."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                self._inside(host, command),
                cwd=cwd,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=_die_with_the_test,
            )
        self._processes.append(process)
        return process

    def run(self, host: int, *command: str, timeout: float = _PATIENCE_SECONDS) -> str:
        """What a command on a host prints; it must succeed."""
        done = subprocess.run(
            self._inside(host, command), capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"{command} on host {host}: {done.stdout}{done.stderr}"
        return done.stdout

    def close(self):
        """End what runs on the hosts, and remove them."""
        for process in reversed(self._processes + self._holders):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        for name in [*self.names, f"{self.prefix}-sw"]:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for pid in pids.split():
                subprocess.run(["kill", "-9", pid], capture_output=True, check=False)
        for process in self._processes + self._holders:
            process.wait(_PATIENCE_SECONDS)
        for name in [*self.names, f"{self.prefix}-sw"]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _make_network(self, rate):
        switch = f"{self.prefix}-sw"
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "br0", "up")
        hosts = "127.0.0.1 localhost\n" + "".join(
            f"{address} {name}\n" for name, address in zip(self.names, self.addresses, strict=True)
        )
        for number, (name, address) in enumerate(zip(self.names, self.addresses, strict=True), 1):
            _run("ip", "netns", "add", name)
            peer = ("peer", "name", "eth0", "netns", name)
            _run("ip", "link", "add", f"p{number}", "netns", switch, "type", "veth", *peer)
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            _run("ip", "-n", switch, "link", "set", f"p{number}", "master", "br0", "up")
            if rate:
                shape = ("root", "tbf", "rate", rate, "burst", "128kb", "latency", "50ms")
                _run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "eth0", *shape)
                _run("ip", "netns", "exec", switch, "tc", "qdisc", "add", "dev", f"p{number}", *shape)
            directory = Path(f"/etc/netns/{name}")
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "hosts").write_text(hosts)

    def _make_host(self, number):
        """A process that holds the host's mounts and name, into which all others of the host enter."""
        name = self.names[number]
        mounts = " && ".join(f"mount -t tmpfs tmpfs {path}" for path in self._private) or "true"
        script = f"hostname {name} && {mounts} && echo ready && exec sleep infinity"
        holder = subprocess.Popen(
            ["ip", "netns", "exec", name, "unshare", "--mount", "--uts", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_the_test,
        )
        self._holders.append(holder)
        assert holder.stdout is not None
        told = holder.stdout.readline()
        assert told == b"ready\n", told + holder.stdout.read()
        holder.stdout.close()

    def _inside(self, host, command):
        # Network, name and mounts are those of the process that holds the host.
        return ["nsenter", "--target", str(self._holders[host - 1].pid), "--net", "--uts", "--mount", *command]


class Cluster:
    """A standalone Spark master on host 1 and a worker on each host named.

    Args:
        lab: the hosts.
        logs: directory for the logs, seen by everybody.
        workers: by host (from 1) its worker's cores.

    Attributes:
        url: the master's.
    """

    def __init__(self, lab: Netlab, logs: Path, workers: dict[int, int]):
        self._lab, self._logs = lab, logs
        self.url = f"spark://{lab.addresses[0]}:{_PORT}"
        self._start(1, "master", "master.Master", "--port", str(_PORT), "--webui-port", str(_UI_PORT))
        self._wait_for_workers(0)
        for host, cores in workers.items():
            own = ("--cores", str(cores), "--memory", "1g", "--webui-port", "0", "--work-dir", "/tmp/spark-work")
            self._start(host, f"worker{host}", "worker.Worker", *own, self.url)
        self._wait_for_workers(len(workers))

    def drive(self, program: str, *arguments: str, timeout: float = 480.0) -> str:
        """Run a Python program on host 1, where the driver is; what it prints. It must succeed."""
        log = self._logs / "driver.log"
        process = self._lab.start(
            1,
            *(sys.executable, "-c", program, *arguments),
            log=log,
            environment={**self.environment, "SPARK_LOCAL_IP": self._lab.addresses[0]},
        )
        code = process.wait(timeout)
        told = log.read_text()
        assert code == 0, told[-6000:]
        return told

    @property
    def environment(self) -> dict[str, str]:
        """What all processes of the cluster find in theirs."""
        return {
            "SPARK_SCALA_VERSION": "2.13",
            "SPARK_HOME": str(_SPARK_HOME),
            "PYSPARK_PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
        }

    def _start(self, host, name, kind, *arguments):
        java = str(Path(os.environ["JAVA_HOME"]) / "bin" / "java") if os.environ.get("JAVA_HOME") else "java"
        address = self._lab.addresses[host - 1]
        self._lab.start(
            host,
            *(java, "-Xmx256m", "-cp", f"{_SPARK_HOME}/jars/*", f"org.apache.spark.deploy.{kind}"),
            *("--host", address, *arguments),
            log=self._logs / f"{name}.log",
            environment={**self.environment, "SPARK_LOCAL_IP": address},
        )

    def _wait_for_workers(self, count):
        page = f"http://{self._lab.addresses[0]}:{_UI_PORT}/json/"
        opened = f"urllib.request.urlopen({page!r}, timeout=5)"
        ask = f"import json, urllib.request; print(json.load({opened})['aliveworkers'])"
        until = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < until:
            asked = subprocess.run(
                self._lab._inside(1, (sys.executable, "-S", "-c", ask)), capture_output=True, text=True, check=False
            )
            if asked.returncode == 0 and int(asked.stdout) >= count:
                return
            time.sleep(0.5)
        raise AssertionError(f"no master with {count} workers: see {self._logs}/*.log")
