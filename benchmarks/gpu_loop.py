"""What the system costs a GPU: images/s against a hand-written loop, and synchronising against its parts.

Needs torch, pyarrow, safetensors, protobuf and numpy; neither Java nor Spark nor a network. Workers are processes,
against a real coordinator and driver service, as tests/support/bare_run.py makes them.

For each net, in every repetition, one after the other and each in a process of its own:

- by hand: the rows in memory as bytes, a random permutation per epoch, a batch through page-locked memory, mean and
  scale on the device, forward and backward under autocast in bf16, channels last, SGD with momentum; nothing else;
- the system with one worker: the same rows from shards, the same net and solver, rounds of `--local-steps` steps.

The net is the zoo's on both sides: what is measured is the loop. Both first take the steps of a warm-up. By hand is
timed from the end of the warm-up's last step to the end of the last one, the system from the commit that ends the
warm-up to the commit of the last round; everything between commits counts against it.

Synchronising is benchmarks/sync.py's measurement with as many floats as resnet50 has, two workers on one device: a
round's exchange and apply against copying down, a raw gloo all-reduce, and copying up.

The bars are for a machine with a GPU; `--device cpu` only shows that it runs.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from measured import Bar, Series, print_bars, print_table, surroundings, write_report

sys.path.append(str(Path(__file__).parent.parent / "tests" / "support"))

from bare_run import BareRun, config_of, store
from sparknet.config import Net, Objective
from sparknet.data.shards.manifest import Manifest
from sparknet.data.shards.prepared import PreparedData
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.recipe import Recipe
from sync import measure as measure_sync

LOOP_BAR = 0.97
SYNC_BAR = 1.3
NETS = ("resnet50", "googlenet")
SHAPE = (3, 224, 224)
CLASSES = 1000
RESNET50_FLOATS = 25_616_384
"""Weights and statistics of the zoo's resnet50."""
_MEAN, _SCALE = 100.0, 0.01  # as bare_run's


def by_hand(pipe: Connection, name: str, directory: Path, options: argparse.Namespace) -> None:
    """Train as a careful person would write it down; sends the seconds of the timed steps."""
    device = torch.device(options.device)
    images, labels = (torch.from_numpy(np.load(directory / f"{part}.npy")) for part in ("images", "labels"))
    recipe = Recipe.read(Net(name=name), objective=Objective())
    net = build_objective(recipe, Manifest.load(directory / "store").rows, batch_size=options.batch, seed=0).module
    net = net.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    held = torch.empty((options.batch, *SHAPE), dtype=torch.uint8, pin_memory=device.type == "cuda")
    at, order, began = 0, torch.randperm(len(images)), 0.0
    for step in range(options.warm_up + options.steps):
        if step == options.warm_up:
            _settle(device)
            began = time.perf_counter()
        if at + options.batch > len(order):
            at, order = 0, torch.randperm(len(images))
        rows = order[at : at + options.batch]
        at += options.batch
        torch.index_select(images, 0, rows, out=held)
        batch = held.to(device, non_blocking=True).float().sub_(_MEAN).mul_(_SCALE)
        batch = batch.contiguous(memory_format=torch.channels_last)
        target = labels[rows].to(device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            loss: Any = net.loss(net({"data": batch, "label": target}))
        loss.backward()
        optimizer.step()
    _settle(device)
    pipe.send(time.perf_counter() - began)


def in_system(name: str, directory: Path, data: PreparedData, options: argparse.Namespace) -> float:
    """Train with one worker; the seconds between the two commits."""
    warm_rounds, rounds = (steps // options.local_steps for steps in (options.warm_up, options.steps))
    with tempfile.TemporaryDirectory(dir=directory) as run_directory:
        config = config_of(
            directory,
            Net(name=name, channels_last=True),
            run={"workers": 1, "rounds": warm_rounds + rounds, "checkpoint_every": 0},
            solver={"batch_size": options.batch, "learning_rate": 0.01, "precision": "bf16"},
            sync={"local_steps": options.local_steps},
            # As many as the loop by hand has.
            cluster={"threads_per_worker": torch.get_num_threads()},
        )
        with BareRun(Path(run_directory), config, data, device=options.device) as run:
            run.until("round", round=warm_rounds)
            began = time.perf_counter()
            run.until("round", round=warm_rounds + rounds)
            seconds = time.perf_counter() - began
            run.finish()
    return seconds


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _loops(options: argparse.Namespace, directory: Path) -> tuple[list[Series], list[Bar]]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (options.rows, *SHAPE), np.uint8)
    labels = random.integers(0, CLASSES, options.rows)
    np.save(directory / "images.npy", images)
    np.save(directory / "labels.npy", labels)
    data = store(directory / "store", images, labels, classes=CLASSES, held=options.batch)
    del images
    spawn = multiprocessing.get_context("spawn")
    series, bars = list[Series](), list[Bar]()
    for name in options.nets:
        hand, system = list[float](), list[float]()
        for repetition in range(options.repetitions):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=by_hand, args=(theirs, name, directory, options), daemon=True)
            process.start()
            theirs.close()
            hand.append(options.steps * options.batch / ours.recv())
            process.join()
            system.append(options.steps * options.batch / in_system(name, directory, data, options))
            print(
                f"{name} {repetition + 1}: by hand {hand[-1]:,.0f}, system {system[-1]:,.0f} images/s", flush=True
            )
        peer = Series(name=f"{name} by hand", unit="images/s", values=tuple(hand))
        found = Series(name=f"{name} in the system", unit="images/s", values=tuple(system)).against(peer)
        series += [peer, found]
        promise = f"{name}: system / by hand at least {LOOP_BAR:g}"
        bars.append(Bar(promise=promise, found=found.ratio, met=found.ratio >= LOOP_BAR))
    return series, bars


def _synchronising(options: argparse.Namespace) -> tuple[list[Series], list[Bar]]:
    asked = argparse.Namespace(
        floats=options.floats, repetitions=options.repetitions, rounds=20, skip_spark=True, device=options.device
    )
    series, _ = measure_sync(asked)
    average = next(one for one in series if one.name == "average: exchange + apply")
    promise = f"synchronising resnet50 / (copy down + gloo + copy up) at most {SYNC_BAR:g}"
    return series, [Bar(promise=promise, found=average.ratio, met=average.ratio <= SYNC_BAR)]


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that it runs (cuda)")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS, help="which nets (both)")
    parser.add_argument("--batch", type=int, default=128, help="rows of a step (128)")
    parser.add_argument("--rows", type=int, default=4096, help="rows to train on (4096)")
    parser.add_argument("--local-steps", type=int, default=20, help="steps of a round (20)")
    parser.add_argument("--warm-up", type=int, default=40, help="steps before the timed ones (40)")
    parser.add_argument("--steps", type=int, default=100, help="timed steps (100)")
    parser.add_argument("--repetitions", type=int, default=3, help="of everything (3)")
    parser.add_argument("--floats", type=int, default=RESNET50_FLOATS, help="weights that are synchronised")
    parser.add_argument("--output", type=Path, help="report file (runs/benchmarks/gpu_loop-<time>.json)")
    options = parser.parse_args()
    if options.warm_up % options.local_steps or options.steps % options.local_steps or not options.warm_up:
        parser.error("--warm-up and --steps must be multiples of --local-steps, at least one")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu shows that it runs, and says nothing of a GPU")
    around = surroundings()
    if options.device == "cuda":
        around["hardware"]["gpu"] = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as directory:
        series, bars = _loops(options, Path(directory))
    more, held = _synchronising(options)
    series, bars = series + more, bars + held
    print_table(series)
    print_bars(bars)
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    write_report(options.output, "gpu_loop", around=around, settings=settings, series=series, bars=bars)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the workers have ended")
