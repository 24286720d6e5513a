"""What the system costs one worker: its images/s against a hand-written PyTorch loop over the same net and data.

In every repetition, one after the other and each in a process of its own:

- by hand: the rows in memory, a random permutation per epoch, forward, backward, SGD with momentum; nothing else;
- the system, once per `--local-steps`: `sparknet.spark.running.run.train` with one worker, as
  `sparknet train` calls it.

Net, batch size, mean, scale, solver and threads come from configs/cifar10_quick.toml (`--set` changes both sides
alike); the data are random rows in CIFAR-10's format.

Both sides first take the same number of steps to warm up, then as many as are timed, by the wall clock:

- by hand from the end of the warm-up's last step to the end of the last step;
- the system from the commit that ends the warm-up to the commit of the last round, by the times of the `round`
  events. So everything that happens between commits counts against it: loader, local steps, quorum, all-reduce,
  vote, the way of the messages, applying the average. Start, preparation, and the validation and the checkpoint
  after the last round are not in it.

On Linux the report also says how long, within the timed steps, the training thread waited for a core that something
else had, and how many pages the kernel had to hand it. The waits are a busy machine's noise (and, on one core, the
system's own threads): they are not taken off, but they tell what a figure is worth.

Ratios are taken repetition by repetition. The exit code is 0 unless something broke; a bar that is missed is
printed and recorded.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from measured import Bar, Series, print_bars, print_table, surroundings, write_report
from sparknet.config import RunConfig, load_config

CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_quick.toml"
RATIO_BAR = 0.98
_PIXELS = 3 * 32 * 32
_CLASSES = 10


# What the kernel knows of a training thread --------------------------------------------------------------------


def _kernel_record(pid: int) -> dict[str, float]:
    """Of a process' main thread since it began: seconds waited for a core, and minor page faults, in thousands."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        waited = int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text(encoding="utf-8").split()[1])
    except (OSError, IndexError):  # another system, or the process has ended
        return {}
    return {"waited_seconds": waited / 1e9, "kilofaults": int(fields[7]) / 1e3}


def _busiest_python_below(root: int) -> int:
    """The Python process among the descendants of `root` with the most CPU time: the Spark worker in training."""
    parents, spent = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:  # it has ended
            continue
        name, fields = text.partition("(")[2].rpartition(")")[0], text.rpartition(")")[2].split()
        pid = int(path.parent.name)
        parents[pid], spent[pid] = int(fields[1]), (int(fields[11]) if name.startswith("python") else -1)

    def is_below(pid: int) -> bool:
        while pid := parents.get(pid, 0):
            if pid == root:
                return True
        return False

    return max((pid for pid in spent if is_below(pid)), key=spent.__getitem__, default=0)


def _between(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {key: after[key] - before[key] for key in after if key in before}


# The two sides, each in a process of its own -------------------------------------------------------------------


def by_hand_loop(config: RunConfig, warm_up: int, steps: int) -> dict[str, float]:
    """Train as a careful person would write it down."""
    import torch
    from torch.nn import functional

    from by_hand import NETS

    torch.set_num_threads(config.cluster.threads_per_worker)
    torch.manual_seed(config.run.seed)
    layout = torch.channels_last if config.net.channels_last else torch.contiguous_format
    images, labels = _read(Path(config.data.path) / "data_batch_1.bin")
    images, labels = torch.from_numpy(images), torch.from_numpy(labels)
    mean = {
        "none": torch.zeros(()),
        "channel": images.float().mean((0, 2, 3), keepdim=True),
        "image": images.float().mean(0),
    }[config.data.mean]
    net = NETS[config.net.name]().to(memory_format=layout)
    solver = config.solver
    optimizer = torch.optim.SGD(
        net.parameters(), lr=solver.learning_rate, momentum=solver.momentum, weight_decay=solver.weight_decay
    )
    total = torch.zeros(())
    net.train()
    before, began, at, order = {}, 0.0, 0, torch.randperm(len(images))
    for step in range(warm_up + steps):
        if step == warm_up:
            before, began = _kernel_record(os.getpid()), time.perf_counter()
        if at + solver.batch_size > len(order):
            at, order = 0, torch.randperm(len(images))
        rows = order[at : at + solver.batch_size]
        at += solver.batch_size
        batch = images[rows].float().sub_(mean).mul_(config.data.scale).contiguous(memory_format=layout)
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(net(batch), labels[rows])
        loss.backward()
        optimizer.step()
        total += loss.detach()
    seconds = time.perf_counter() - began
    after = _kernel_record(os.getpid())
    return {"seconds": seconds, "loss": float(total) / (warm_up + steps), **_between(before, after)}


def in_system(config: RunConfig, warm_up: int, directory: Path) -> dict[str, float]:
    """Train with one Spark worker, and read the times of the rounds from its events."""
    from sparknet.spark.running.run import train
    from sparknet.training.run_files.run_dir import RunDir

    rounds: list[dict[str, Any]] = []
    kernel: list[dict[str, float]] = []
    warm_rounds = warm_up // config.sync.local_steps

    def watch(record: dict[str, object]) -> None:
        if record["event"] == "round":
            rounds.append(record)
            if record["round"] in (warm_rounds, config.run.rounds):
                kernel.append(_kernel_record(_busiest_python_below(os.getpid())))

    with RunDir.create(directory, config) as run_dir:
        train(config, run_dir, observers=[watch])
    timed = rounds[warm_rounds:]
    seconds = timed[-1]["time"] - rounds[warm_rounds - 1]["time"]
    steps = sum(record["step_seconds"] for record in timed)
    exchange = sum(record["exchange_seconds"] for record in timed)
    return {
        "seconds": seconds,
        "steps_seconds": steps,
        "exchange_seconds": exchange,
        "other_seconds": seconds - steps - exchange,
        "loss": sum(record["loss"] for record in rounds) / len(rounds),
        **_between(*kernel),
    }


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 3, 32, 32] and labels int64 [n] of a CIFAR-10 binary batch."""
    records = np.fromfile(path, np.uint8).reshape(-1, 1 + _PIXELS)
    return records[:, 1:].reshape(-1, 3, 32, 32).copy(), records[:, 0].astype(np.int64)


def _write(directory: Path, rows: int) -> None:
    """Random rows as data_batch_1.bin, and a few as test_batch.bin."""
    directory.mkdir()
    random = np.random.default_rng(0)
    for name, count in (("data_batch_1.bin", rows), ("test_batch.bin", 200)):
        records = random.integers(0, 256, (count, 1 + _PIXELS), dtype=np.uint8)
        records[:, 0] %= _CLASSES
        records.tofile(directory / name)


# The run -----------------------------------------------------------------------------------------------------


class _Bench:
    """Runs the sides and keeps what they found."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self._options, self._directory = options, directory
        self._runs = 0
        _write(directory / "data", options.rows)

    def configure(self, local_steps: int) -> RunConfig:
        """The shipped configuration with one worker, and with validation and checkpoint only at the end."""
        options, data = self._options, self._directory / "data"
        settings = [
            "run.workers=1",
            "run.epochs=",
            f"run.rounds={(options.warm_up + options.steps) // local_steps}",
            "run.eval_every=0",
            "run.checkpoint_every=0",
            f"data.path={data}",
            f"data.validation_path={data}",
            f"data.store={self._directory / 'store'}",
            f"sync.local_steps={local_steps}",
        ]
        return load_config(CONFIG, [*settings, *options.set])

    def measure(self, local_steps: int | None) -> dict[str, float]:
        """Run one side in a fresh process; without `local_steps` the loop by hand.

        Returns:
            What the side found, with `rate` in images/s over its timed steps.
        """
        options = self._options
        self._runs += 1
        config = self.configure(local_steps or options.local_steps[0])
        os.environ["OMP_NUM_THREADS"] = str(config.cluster.threads_per_worker)  # as Spark sets it for a worker
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        work = (by_hand_loop, (config, options.warm_up, options.steps))
        if local_steps is not None:
            work = (in_system, (config, options.warm_up, self._directory / f"run{self._runs}"))
        process = spawn.Process(target=_report, args=(theirs, *work))
        process.start()
        theirs.close()
        try:
            found = ours.recv()
        except EOFError:
            raise RuntimeError(f"{work[0].__name__} failed; its own message stands above") from None
        finally:
            _reap(process)
        return {**found, "rate": options.steps * config.solver.batch_size / found["seconds"]}


def _report(pipe: Connection, side: Callable[..., dict[str, float]], arguments: tuple[object, ...]) -> None:
    try:
        pipe.send(side(*arguments))
    except KeyboardInterrupt:  # the parent has it too, and says so
        sys.exit(1)


def _reap(process: BaseProcess) -> None:
    """After Ctrl-C, which the child gets too, its workers have some seconds to end by themselves."""
    process.join(20)
    if process.is_alive():
        process.kill()
        process.join()


def measure(options: argparse.Namespace) -> tuple[list[Series], list[Bar]]:
    """Run everything."""
    found: dict[int | None, list[dict[str, float]]] = {None: [], **{steps: [] for steps in options.local_steps}}
    with tempfile.TemporaryDirectory() as name:
        bench = _Bench(options, Path(name))
        for repetition in range(options.repetitions):
            for side, measured in found.items():
                measured.append(bench.measure(side))
                told = "by hand" if side is None else f"system, {side} local steps"
                print(f"repetition {repetition + 1}: {told}: {measured[-1]['rate']:.1f} images/s", flush=True)
    plain = _column(found[None], "rate", "by hand", "images/s")
    series, bars = [plain], []
    for side in options.local_steps:
        whole = _column(found[side], "rate", f"system, {side} local steps", "images/s").against(plain)
        met = whole.ratio >= RATIO_BAR
        bars.append(
            Bar(promise=f"system / by hand at least {RATIO_BAR:g}, {side} local steps", found=whole.ratio, met=met)
        )
        series.append(whole)
        series += [
            _column(found[side], f"{part}_seconds", f"{side} local steps: {part}", "s")
            for part in ("steps", "exchange", "other")
        ]
    for side, measured in found.items():
        name = "by hand" if side is None else f"{side} local steps"
        if all("waited_seconds" in one for one in measured):
            series.append(_column(measured, "waited_seconds", f"{name}: waited for a core", "s"))
            series.append(_column(measured, "kilofaults", f"{name}: page faults", "thousands"))
    return series, bars


def _column(found: list[dict[str, float]], key: str, name: str, unit: str) -> Series:
    return Series(name=name, unit=unit, values=tuple(one[key] for one in found))


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local-steps", type=int, nargs="+", default=[50, 10], help="of the system (50 10)")
    parser.add_argument("--steps", type=int, default=200, help="timed steps on each side (200)")
    parser.add_argument("--warm-up", type=int, default=50, help="steps before those (50)")
    parser.add_argument("--rows", type=int, default=10_000, help="training rows (10,000)")
    parser.add_argument("--repetitions", type=int, default=3, help="of all sides in turn (3)")
    parser.add_argument("--cores", type=int, help="let everything, Spark too, run on so many cores only")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override the configuration"
    )
    parser.add_argument("--output", type=Path, help="report file (runs/benchmarks/worker_loop-<time>.json)")
    options = parser.parse_args()
    if min(options.steps, options.warm_up, options.rows, options.repetitions, *options.local_steps) < 1:
        parser.error("--local-steps, --steps, --warm-up, --rows and --repetitions must be at least 1")
    if any(options.steps % steps or options.warm_up % steps for steps in options.local_steps):
        parser.error("--steps and --warm-up must be multiples of --local-steps: a round is timed whole")
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    around = surroundings()
    series, bars = measure(options)
    print_table(series)
    print_bars(bars)
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    write_report(options.output, "worker_loop", around=around, settings=settings, series=series, bars=bars)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the processes have ended")
