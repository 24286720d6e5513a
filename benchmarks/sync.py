"""What it costs two workers to agree on 60 M weights, against a raw gloo all-reduce of the same buffer.

Two processes on this machine, with one thread each as in a Spark worker, do in every repetition, one after the
other, so that a drift of the machine hits all alike:

- raw: one gloo all-reduce of a flat float32 buffer, with the device options that SparkNet uses;
- average, diloco: one synchronisation as a worker does it, in a round that a real coordinator decides through the
  real driver service: `Synchroniser.exchange` (weighting by samples, check for finite weights, all-reduce) and
  `Synchroniser.apply` (outer step, copy into the net, hash). `whole round` is that with quorum and commit;
- spark: treeReduce of two numpy arrays, division, broadcast back to two tasks, as the first SparkNet did; it
  takes some 20 s, so it comes after the others, a few times, each beside a raw all-reduce of its own.

Quorum + commit by themselves (the calls Ready -> Exchange and Vote -> Committed, both workers at once, nothing
between them) are measured over many rounds afterwards.

Both workers begin a measurement at a barrier; the slower one counts. Ratios are taken repetition by repetition.
The exit code is 0 unless something broke; bars that are missed are printed and recorded.
"""

import argparse
import functools
import multiprocessing
import operator
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from measured import Bar, Series, print_bars, print_table, surroundings, write_report
from sparknet.config import Sync
from sparknet.data.loading.sampling_order import Cursor
from sparknet.spark.jobs.ports import DriverHost
from sparknet.spark.running.driver_client import DriverAddress, DriverClient
from sparknet.spark.running.driver_service import DriverService
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.messages import Committed, Exchange, Heartbeat, Ready, Register, Vote, Welcome
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import Rules
from sparknet.training.run_files.checkpoint import Checkpoints
from sparknet.training.sync.flat_weights import FlatWeights
from sparknet.training.sync.gloo_groups import Groups
from sparknet.training.sync.synchronise import Synchroniser
from sparknet.training.worker.heartbeat import Heartbeats

WORKERS = 2
HOST = "127.0.0.1"
RATIO_BAR = 1.4
DILOCO_BAR = 2.0
QUORUM_BAR_MILLISECONDS = 10.0
_TENSORS = 16  # the weights of a net are many tensors
_PATIENCE_SECONDS = 300.0

dist: Any = distributed
Times = dict[str, float]


# A worker process --------------------------------------------------------------------------------------------


class _Net(nn.Module):
    """So many parameters and nothing else; the same on every worker."""

    def __init__(self, floats: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = [floats // _TENSORS + (index < floats % _TENSORS) for index in range(_TENSORS)]
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(size)) for size in sizes])


class _Worker:
    """One of the two: takes part in the coordinator's rounds, and measures what it does there."""

    def __init__(
        self, slot: int, client: DriverClient, groups: Groups, *, barrier: Any, floats: int, device: str
    ) -> None:
        self._slot, self._client, self._groups, self._barrier = slot, client, groups, barrier
        answer = client.ask(Register(slot=slot, attempt=0, host=socket.gethostname()))
        assert isinstance(answer, Welcome), answer
        self._round = answer.round
        self._syncs = {
            strategy: Synchroniser(FlatWeights(_Net(floats).to(device)), Sync(strategy=strategy).outer)
            for strategy in ("average", "diloco")
        }
        self._on_device = torch.empty(floats, device=device)
        # On a GPU the transfer itself begins and ends with a copy, by way of page-locked memory.
        self._buffer = torch.empty(floats, pin_memory=True) if self._on_device.is_cuda else self._on_device

    def join_raw(self, store: str) -> None:
        """Make the process group that has nothing of SparkNet in it."""
        options = dist.ProcessGroupGloo._Options()
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=HOST)]
        options._timeout = timedelta(seconds=_PATIENCE_SECONDS)
        self._raw = dist.ProcessGroupGloo(dist.FileStore(store, WORKERS), self._slot, WORKERS, options)

    def raw(self) -> Times:
        """One all-reduce, with the copies from and to the device."""
        self._on_device.fill_(self._slot + 1)
        self._settle()
        began = self._begin()
        if self._buffer is not self._on_device:
            self._buffer.copy_(self._on_device)
        self._raw.allreduce([self._buffer]).wait()
        if self._buffer is not self._on_device:
            self._on_device.copy_(self._buffer)
        self._settle()
        seconds = time.perf_counter() - began
        assert float(self._on_device[0]) == float(self._on_device[-1]) == sum(range(1, WORKERS + 1))
        return {"seconds": seconds}

    def _settle(self) -> None:
        if self._on_device.is_cuda:
            torch.cuda.synchronize()

    def synchronise(self, strategy: str) -> Times:
        """One round without the local steps."""
        sync = self._syncs[strategy]
        before = sync.anchor[: 1 << 16].clone()
        sync.weights.flat.mul_(1 + 0.01 * self._slot)  # in place of local steps
        self._settle()
        began = self._begin()
        exchange = self._quorum(sync.anchor_hash)
        allowed = time.perf_counter()
        sync.exchange(self._groups.enter(exchange.epoch, exchange.rank, exchange.size), exchange.weight)
        exchanged = time.perf_counter()
        self._commit(exchange)
        committed = time.perf_counter()
        sync.apply()
        self._settle()
        ended = time.perf_counter()
        if strategy == "average":
            assert torch.allclose(sync.anchor[: 1 << 16], before * 1.005, rtol=1e-5), "this is not the average"
        return {
            "seconds": exchanged - allowed + ended - committed,
            "whole": ended - began,
            "exchange": exchanged - allowed,
            "apply": ended - committed,
        }

    def decide(self) -> Times:
        """One round with nothing in it."""
        began = self._begin()
        exchange = self._quorum("")
        allowed = time.perf_counter()
        self._commit(exchange)
        ended = time.perf_counter()
        return {"seconds": ended - began, "quorum": allowed - began, "commit": ended - allowed}

    def _begin(self) -> float:
        self._barrier.wait(_PATIENCE_SECONDS)
        return time.perf_counter()

    def _quorum(self, anchor_hash: str) -> Exchange:
        answer = self._client.ask(
            Ready(
                slot=self._slot,
                attempt=0,
                round=self._round,
                steps=10,
                samples=1000,
                cursor=Cursor(epoch=0, position=0),
                loss=1.0,
                learning_rate=0.01,
                step_seconds=1.0,
                anchor_hash=anchor_hash,
            )
        )
        assert isinstance(answer, Exchange), answer
        assert answer.size == WORKERS, answer
        return answer

    def _commit(self, exchange: Exchange) -> None:
        answer = self._client.ask(
            Vote(slot=self._slot, attempt=0, round=exchange.round, epoch=exchange.epoch, ok=True)
        )
        assert isinstance(answer, Committed), answer
        self._round = answer.round


def _work(slot: int, address: DriverAddress, pipe: Connection, *, barrier: Any, floats: int, device: str) -> None:
    """Do what comes through the pipe until it ends: (name of a method, its arguments, how often)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    torch.set_num_threads(1)
    timeout = 2.0
    client, beat_client = DriverClient(address), DriverClient(address)
    groups = Groups(client, host=HOST, timeout_seconds=_PATIENCE_SECONDS)
    try:
        worker = _Worker(slot, client, groups, barrier=barrier, floats=floats, device=device)
        with Heartbeats(lambda: beat_client.tell(Heartbeat(slot=slot, attempt=0)), groups.abort, timeout):
            pipe.send(None)
            while True:
                name, arguments, times = pipe.recv()
                pipe.send([getattr(worker, name)(*arguments) for _ in range(times)])
    except (EOFError, BrokenPipeError):  # the parent has ended, or was interrupted
        return
    except Exception:
        pipe.send(traceback.format_exc())


# The parent --------------------------------------------------------------------------------------------------


class _Pair:
    """Both worker processes."""

    def __init__(self, pipes: list[Connection], processes: list[BaseProcess]) -> None:
        self._pipes, self._processes = pipes, processes
        self._answers()

    def do(self, name: str, *arguments: object, times: int = 1) -> list[Times]:
        """Let both do the same at once; of each time the slower worker's."""
        for pipe in self._pipes:
            pipe.send((name, arguments, times))
        return [
            {key: max(mine[key] for mine in measured) for key in measured[0]} if measured[0] else {}
            for measured in zip(*self._answers(), strict=True)
        ]

    def _answers(self) -> list[Any]:
        answers: dict[int, Any] = {}
        while len(answers) < len(self._pipes):
            waiting = [pipe for index, pipe in enumerate(self._pipes) if index not in answers]
            ready = wait([*waiting, *(process.sentinel for process in self._processes)], _PATIENCE_SECONDS)
            if not ready:
                raise RuntimeError(f"a worker gave no answer in {_PATIENCE_SECONDS:g} s")
            for index, pipe in enumerate(self._pipes):
                if pipe in ready and index not in answers:
                    try:
                        answers[index] = pipe.recv()
                    except EOFError:
                        raise RuntimeError(f"worker {index} died") from None
                    if isinstance(answers[index], str):
                        raise RuntimeError(f"worker {index} failed:\n{answers[index]}")
            if not any(pipe in ready for pipe in waiting):
                raise RuntimeError("a worker process died")
        return [answers[index] for index in range(len(self._pipes))]


@contextmanager
def _workers(address: DriverAddress, floats: int, device: str) -> Generator[_Pair]:
    spawn = multiprocessing.get_context("spawn")
    given = {"barrier": spawn.Barrier(WORKERS), "floats": floats, "device": device}
    pipes, processes = [], []
    try:
        for slot in range(WORKERS):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(
                target=_work,
                args=(slot, address, theirs),
                kwargs=given,
                daemon=True,
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        yield _Pair(pipes, processes)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def _driver(directory: Path) -> Generator[DriverAddress]:
    rules = Rules(slots=WORKERS, rounds=1_000_000_000, plan=RoundPlan(local_steps=10))
    token = secrets.token_urlsafe(32)
    coordinator = Coordinator(rules, now=time.monotonic())
    with DriverService(
        coordinator, Checkpoints(directory, keep=2), at=DriverHost(host=HOST), token=token
    ) as service:
        yield DriverAddress(uri=service.address, token=token)


# Spark as the first SparkNet used it ---------------------------------------------------------------------------


class _SparkReduce:
    """Weights travel through Spark: reduced on the driver, broadcast back."""

    def __init__(self, spark: Any, floats: int) -> None:
        self._context = spark.sparkContext
        self._floats = floats
        self._tasks = self._context.parallelize(range(WORKERS), WORKERS)
        self._tasks.map(_identity).collect()  # Python workers start

    def once(self) -> Times:
        began = time.perf_counter()
        total = self._tasks.map(functools.partial(_weights, floats=self._floats)).treeReduce(operator.add)
        reduced = time.perf_counter()
        total /= WORKERS
        handed = self._context.broadcast(total)
        found = self._tasks.map(functools.partial(_take, handed)).collect()
        ended = time.perf_counter()
        handed.destroy()
        assert found == [(WORKERS + 1) / 2] * WORKERS, found
        return {"seconds": ended - began, "reduce": reduced - began, "broadcast": ended - reduced}


def _identity(slot: int) -> int:
    return slot


def _weights(slot: int, *, floats: int) -> np.ndarray:
    return np.full(floats, slot + 1, np.float32)


def _take(handed: Any, slot: int) -> float:
    return float(handed.value.copy()[slot])  # the copy is what setting a net's weights does


@contextmanager
def _spark(floats: int) -> Iterator[_SparkReduce]:
    # Imported here: with --skip-spark the rest runs where there is none.
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    gigabytes = max(1, 6 * floats // 60_000_000)
    settings = {
        "spark.driver.memory": f"{gigabytes}g",
        "spark.driver.maxResultSize": "0",
        "spark.driver.host": HOST,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
    }
    builder: Any = SparkSession.builder
    spark = builder.master(f"local[{WORKERS}]").config(map=settings).getOrCreate()
    try:
        yield _SparkReduce(spark, floats)
    finally:
        spark.stop()


# The run -----------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> tuple[list[Series], list[Bar]]:
    """Run everything."""
    rounds: dict[str, list[Times]] = {"raw": [], "average": [], "diloco": []}
    with (
        tempfile.TemporaryDirectory() as name,
        _driver(Path(name)) as address,
        _workers(address, options.floats, options.device) as pair,
    ):
        pair.do("join_raw", str(Path(name) / "store"))
        for repetition in range(-1, options.repetitions):  # the first one warms up and is not counted
            measured = {
                "raw": pair.do("raw"),
                "average": pair.do("synchronise", "average"),
                "diloco": pair.do("synchronise", "diloco"),
            }
            if repetition >= 0:
                told = ", ".join(f"{kind} {times[0]['seconds']:.3f}" for kind, times in measured.items())
                print(f"repetition {repetition + 1}: {told} s", flush=True)
                for kind, times in measured.items():
                    rounds[kind] += times
        decided = pair.do("decide", times=options.rounds + 10)[10:]
        if not options.skip_spark:
            rounds["spark"] = _interleave_spark(pair, options)
    return _series(rounds, decided), _bars(rounds, decided)


def _interleave_spark(pair: _Pair, options: argparse.Namespace) -> list[Times]:
    """Spark's repetitions, each beside a raw all-reduce of its own."""
    measured = []
    with _spark(options.floats) as spark:
        for repetition in range(options.spark_repetitions):
            raw = pair.do("raw")[0]["seconds"]
            times = spark.once()
            print(f"spark repetition {repetition + 1}: {times['seconds']:.1f} s, raw {raw:.3f} s", flush=True)
            measured.append({**times, "raw": raw})
    return measured


def _column(times: list[Times], key: str, name: str, *, unit: str = "s") -> Series:
    factor = 1000 if unit == "ms" else 1
    return Series(name=name, unit=unit, values=tuple(factor * one[key] for one in times))


def _series(rounds: dict[str, list[Times]], decided: list[Times]) -> list[Series]:
    raw = _column(rounds["raw"], "seconds", "raw gloo all-reduce")
    found = [raw]
    for strategy in ("average", "diloco"):
        times = rounds[strategy]
        found += [
            _column(times, "seconds", f"{strategy}: exchange + apply").against(raw),
            _column(times, "exchange", f"{strategy}: of it exchange"),
            _column(times, "apply", f"{strategy}: of it apply"),
            _column(times, "whole", f"{strategy}: whole round").against(raw),
        ]
    found += [
        _column(decided, "seconds", "quorum + commit", unit="ms"),
        _column(decided, "quorum", "quorum", unit="ms"),
        _column(decided, "commit", "commit", unit="ms"),
    ]
    if "spark" in rounds:
        beside = _column(rounds["spark"], "raw", "raw beside Spark")
        found += [
            beside,
            _column(rounds["spark"], "reduce", "Spark treeReduce").against(beside),
            _column(rounds["spark"], "broadcast", "Spark divide + broadcast").against(beside),
            _column(rounds["spark"], "seconds", "Spark together").against(beside),
        ]
    return found


def _bars(rounds: dict[str, list[Times]], decided: list[Times]) -> list[Bar]:
    by_name = {one.name: one for one in _series(rounds, decided)}
    ratio = by_name["average: exchange + apply"].ratio
    milliseconds = by_name["quorum + commit"].median
    return [
        Bar(
            promise=f"average / raw at most {RATIO_BAR:g}",
            found=ratio,
            met=ratio <= RATIO_BAR,
        ),
        Bar(
            promise=f"diloco / raw at most {DILOCO_BAR:g}",
            found=by_name["diloco: exchange + apply"].ratio,
            met=by_name["diloco: exchange + apply"].ratio <= DILOCO_BAR,
        ),
        Bar(
            promise=f"quorum + commit at most {QUORUM_BAR_MILLISECONDS:g} ms",
            found=milliseconds,
            met=milliseconds <= QUORUM_BAR_MILLISECONDS,
        ),
    ]


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floats", type=int, default=60_000_000, help="weights of the net (60,000,000)")
    parser.add_argument("--repetitions", type=int, default=11, help="repetitions after the one to warm up (11)")
    parser.add_argument("--rounds", type=int, default=200, help="rounds of quorum + commit (200)")
    parser.add_argument("--spark-repetitions", type=int, default=2, help="of treeReduce + broadcast (2)")
    parser.add_argument("--device", default="cpu", help="of both workers' weights, cpu or cuda (cpu)")
    parser.add_argument("--skip-spark", action="store_true", help="leave treeReduce + broadcast out")
    parser.add_argument("--output", type=Path, help="report file (runs/benchmarks/sync-<time>.json)")
    options = parser.parse_args()
    if min(options.floats, options.repetitions, options.rounds, options.spark_repetitions) < 1:
        parser.error("--floats, --repetitions, --rounds and --spark-repetitions must be at least 1")
    os.environ["OMP_NUM_THREADS"] = "1"  # as Spark sets it for a worker with one core; read by the children
    around = surroundings()
    series, bars = measure(options)
    print_table(series)
    print_bars(bars)
    settings = {
        "floats": options.floats,
        "device": options.device,
        "workers": WORKERS,
        "threads_per_worker": 1,
        "repetitions": options.repetitions,
        "rounds": options.rounds,
    }
    write_report(options.output, "sync", around=around, settings=settings, series=series, bars=bars)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the workers have ended")
