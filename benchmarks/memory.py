"""What a replica holds beside its weights, and for how long its heartbeats are kept from being sent.

Every line is measured in a process of its own, which has one thread and tells malloc what a worker tells it. A net
of `--floats` float32 weights takes part alone; peaks of resident memory are told in multiples of its bytes, less
what Python and torch hold before. A thread that wakes every 10 ms notes how late it is, as a heartbeat would
be, while a checkpoint goes to a driver service in another process, and while it comes back.

The exit code is 0 unless something broke; bars that are missed are printed and recorded.
"""

import argparse
import multiprocessing
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from measured import Bar, Series, print_bars, print_table, surroundings, write_report
from sparknet.config import Sync
from sparknet.spark.jobs.ports import DriverHost
from sparknet.spark.running.driver_client import DriverAddress, DriverClient
from sparknet.spark.running.driver_service import DriverService
from sparknet.spark.running.worker_task import give_back_memory, keep_freed_memory
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import Rules
from sparknet.training.run_files.checkpoint import OUTER, WEIGHTS, Checkpoints
from sparknet.training.run_files.state_bytes import load_weights, weights_file
from sparknet.training.run_files.tensor_bytes import TensorFile, load_tensors
from sparknet.training.sync.flat_weights import FlatWeights
from sparknet.training.sync.gloo_groups import SoloGroup
from sparknet.training.sync.synchronise import Synchroniser

COPIES = {"average": 3, "diloco": 4}
SPARE_BAR = 0.25
GAP_BAR_SECONDS = 0.2
_TENSORS = 10  # the weights of a net are many tensors

Found = dict[str, float]


def _kilobytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


class _Ticker:
    """Notes the longest time for which a thread that only wants to wake was kept from it."""

    def __enter__(self) -> "_Ticker":
        self.worst, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._tick)
        self._thread.start()
        return self

    def _tick(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(0.01):
            now = time.monotonic()
            self.worst, last = max(self.worst, now - last), now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


class _Replica:
    """A net of so many floats and its synchroniser, as a worker has them."""

    def __init__(self, strategy: str, floats: int) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._base, self._bytes = _kilobytes("VmRSS"), 4 * floats
        self.net = nn.Module()
        self.net.weights = nn.ParameterList([nn.Parameter(torch.ones(floats // _TENSORS)) for _ in range(_TENSORS)])
        self.sync = Synchroniser(FlatWeights(self.net), Sync(strategy=strategy).outer)
        give_back_memory()

    def peak(self, action: Callable[[], object]) -> float:
        """The most that is held while something is done, in copies of the weights."""
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        action()
        return 1024 * (_kilobytes("VmHWM") - self._base) / self._bytes

    def round(self) -> None:
        self.sync.exchange(SoloGroup(), 1.0)
        self.sync.apply()


def _rounds(strategy: str, floats: int, address: DriverAddress) -> Found:
    replica = _Replica(strategy, floats)
    replica.round()
    return {"rounds": replica.peak(replica.round)}


def _healing(role: Any, strategy: str, floats: int, address: DriverAddress) -> Found:
    replica = _Replica(strategy, floats)
    replica.round()
    return {f"healing, {role}": replica.peak(lambda: replica.sync.heal(SoloGroup(), role, b"inner state"))}


def _checkpoint(strategy: str, floats: int, address: DriverAddress) -> Found:
    replica, client = _Replica(strategy, floats), DriverClient(address)
    replica.round()
    momentum = replica.sync.momentum

    def put() -> None:
        files = {WEIGHTS: weights_file(replica.net)}
        if momentum is not None:
            files[OUTER] = TensorFile({"momentum": momentum})
        client.put_checkpoint(0, files)

    def fetch() -> None:
        files = client.fetch_checkpoint(0)
        load_weights(replica.net, files.pop(WEIGHTS))
        replica.sync.restart()
        if momentum is not None:
            momentum.copy_(load_tensors(files.pop(OUTER))["momentum"])

    found: Found = {}
    for name, action in (("checkpoint", put), ("fetching it", fetch)):
        with _Ticker() as ticker:
            found[name] = replica.peak(action)
        found[f"{name}: late"] = ticker.worst
    client.close()
    return found


def _healed_keep(*given: Any) -> Found:
    return _healing("keep", *given)


def _healed_receive(*given: Any) -> Found:
    return _healing("receive", *given)


def measure(options: argparse.Namespace) -> tuple[list[Series], list[Bar]]:
    """Every strategy and every thing that a worker does, so many times."""
    spawn, found = multiprocessing.get_context("spawn"), dict[str, list[float]]()
    for strategy in COPIES:
        for stage in (_rounds, _healed_keep, _healed_receive, _checkpoint):
            for _ in range(options.repetitions):
                with ProcessPoolExecutor(1, mp_context=spawn) as pool, tempfile.TemporaryDirectory() as directory:
                    token = secrets.token_urlsafe(32)
                    coordinator = Coordinator(
                        Rules(slots=1, rounds=1, plan=RoundPlan(local_steps=1)), now=time.monotonic()
                    )
                    checkpoints = Checkpoints(Path(directory), keep=1)
                    with DriverService(
                        coordinator, checkpoints, at=DriverHost(host="127.0.0.1"), token=token
                    ) as service:
                        address = DriverAddress(uri=service.address, token=token)
                        once = pool.submit(stage, strategy, options.floats, address).result()
                for name, value in once.items():
                    found.setdefault(f"{strategy}: {name}", []).append(value)
    series = [
        Series(name=name, unit="s" if name.endswith("late") else "weights", values=tuple(values))
        for name, values in found.items()
    ]
    return series, _bars(series)


def _bars(series: list[Series]) -> list[Bar]:
    by_name = {one.name: one for one in series}
    bars: list[Bar] = []
    for strategy, copies in COPIES.items():
        for name in ("rounds", "healing, keep", "checkpoint"):
            most, held = copies + SPARE_BAR, by_name[f"{strategy}: {name}"].median
            bars.append(
                Bar(promise=f"{strategy}, {name}: at most {most:g} × the weights", found=held, met=held <= most)
            )
    late = max(max(one.values) for one in series if one.unit == "s")
    bars.append(
        Bar(promise=f"a thread is at most {GAP_BAR_SECONDS:g} s late", found=late, met=late <= GAP_BAR_SECONDS)
    )
    return bars


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floats", type=int, default=200_000_000, help="weights of the net (200,000,000)")
    parser.add_argument("--repetitions", type=int, default=3, help="processes for each line (3)")
    parser.add_argument("--output", type=Path, help="report file (runs/benchmarks/memory-<time>.json)")
    options = parser.parse_args()
    if options.floats < _TENSORS or options.repetitions < 1:
        parser.error(f"--floats must be at least {_TENSORS} and --repetitions at least 1")
    os.environ["OMP_NUM_THREADS"] = "1"  # as Spark sets it for a worker with one core; read by the children
    around = surroundings()
    series, bars = measure(options)
    print_table(series)
    print_bars(bars)
    settings = {"floats": options.floats, "repetitions": options.repetitions}
    write_report(options.output, "memory", around=around, settings=settings, series=series, bars=bars)


if __name__ == "__main__":
    main()
