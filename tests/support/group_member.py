"""A process that is a member of gloo groups and does what it is told on standard input, one JSON line each.

It meets the others through a driver service, as a worker does, and leaves a group that fails, as a worker does.
"""

import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import torch

from sparknet.spark.running.driver_client import DriverAddress, DriverClient
from sparknet.training.sync import gloo_groups
from sparknet.training.sync.gloo_groups import ExchangeFailed, Groups

PR_SET_PDEATHSIG = 1


class Member:
    """The parent's handle of one such process."""

    def __init__(self, address: DriverAddress, *, timeout_seconds: float = 30.0) -> None:
        command = [sys.executable, __file__, address.uri, str(timeout_seconds)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SPARKNET_TOKEN": address.token}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, bufsize=1
        )
        self.struck = False
        """Whether a signal was sent to it: it is of no use to another test."""
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def tell(self, do: str, **arguments: Any) -> None:
        """Send a command; its answer comes with `heard`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()

    def heard(self, seconds: float = 60.0) -> dict[str, Any]:
        """The answer to the oldest command that is not answered yet."""
        line = self._lines.get(timeout=seconds)
        assert line, f"the member ended with {self.process.wait(10)}"
        return json.loads(line)

    def does(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for the answer."""
        self.tell(do, **arguments)
        return self.heard()

    def signal(self, number: signal.Signals) -> float:
        """Send a signal; when it was sent, on the clock that all processes share."""
        self.struck = True
        at = time.monotonic()
        self.process.send_signal(number)
        return at

    def end(self) -> None:
        """Whatever state it is in."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


entered: list[object] = []
"""The newest group: `leave` must close its sockets although somebody still refers to it."""


def perform(groups: Groups, command: dict[str, Any]) -> dict[str, Any]:
    if "most_bytes" in command:
        gloo_groups._MOST_BYTES = command["most_bytes"]
    group = groups.enter(command["epoch"], command["rank"], command["size"])
    entered[:] = [group]
    if command["do"] == "enter":
        return {}
    kind = torch.int64 if command["do"] == "max" else torch.float32
    if command.get("announced"):
        say({"begun": True})
    buffer = torch.full((command.get("count", 1),), command["value"], dtype=kind)
    getattr(group, command["do"])(buffer)
    # In pieces: of gigabytes a comparison at once would be half as much again.
    same = all(bool((piece == buffer[:1]).all()) for piece in buffer.split(1 << 24))
    return {"value": buffer[:1].tolist(), "same": same}


def still_runs(thread: threading.Thread) -> bool:
    """Whether an operation that was left behind does not end within some seconds."""
    if thread.name != "gloo-left-behind":
        return False
    thread.join(10.0)
    return thread.is_alive()


def say(answer: dict[str, Any]) -> None:
    print(json.dumps({**answer, "at": time.monotonic()}), flush=True)


def main() -> None:
    die_with_parent()
    torch.set_num_threads(1)
    address = DriverAddress(uri=sys.argv[1], token=os.environ["SPARKNET_TOKEN"])
    client = DriverClient(address)
    groups = Groups(client, host="127.0.0.1", timeout_seconds=float(sys.argv[2]))
    commands: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def listen() -> None:
        """Hear everything at once: `abort` must come through while an operation waits."""
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "abort":
                groups.abort(command["epoch"])
            else:
                commands.put(command)
        commands.put(None)

    threading.Thread(target=listen, daemon=True).start()
    say({"ready": True})
    while (command := commands.get()) is not None:
        if command["do"] == "exit":
            return
        if command["do"] == "outlast":
            say({"left_behind": sum(still_runs(thread) for thread in threading.enumerate())})
            continue
        try:
            answer = perform(groups, command)
        except ExchangeFailed as error:
            answer = {"failed": str(error)}
            groups.leave()
        say(answer)


if __name__ == "__main__":
    main()
