"""What Caffe's semantics cost: the zoo's nets against the same nets written by hand in PyTorch.

Of each net, in every repetition one after the other: forward, loss, backward of `CaffeNet` and of the net of
benchmarks/by_hand.py with `cross_entropy`, in training mode, on the same random batch, with one thread. Which side
comes first alternates. Ratios are of images/s, taken repetition by repetition; the bar is 0.95.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from by_hand import NETS
from measured import Bar, Series, print_bars, print_table, surroundings, write_report
from sparknet.caffe import CaffeNet, zoo

RATIO_BAR = 0.95
_BATCH = {"cifar10_quick": 100, "caffenet": 16, "resnet18": 8}


def sides(name: str, batch: int, layout: torch.memory_format) -> dict[str, Callable[[], None]]:
    """One training step of each side, without the solver's."""
    ours = CaffeNet(getattr(zoo, name)(batch_size=batch), "TRAIN").to(memory_format=layout)
    theirs = NETS[name]().to(memory_format=layout).train()
    images = torch.randn(ours.shapes["data"]).contiguous(memory_format=layout)
    labels = torch.arange(batch) % 10

    def caffe_net() -> None:
        ours.zero_grad(set_to_none=True)
        ours.loss(ours({"data": images, "label": labels})).backward()

    def by_hand() -> None:
        theirs.zero_grad(set_to_none=True)
        functional.cross_entropy(theirs(images), labels).backward()

    return {"CaffeNet": caffe_net, "by hand": by_hand}


def measure(options: argparse.Namespace) -> tuple[list[Series], list[Bar]]:
    """Run all nets."""
    series: list[Series] = []
    bars: list[Bar] = []
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    for name in options.nets:
        batch = _BATCH[name]
        runs = sides(name, batch, layout)
        rates: dict[str, list[float]] = {side: [] for side in runs}
        for repetition in range(-1, options.repetitions):  # the first one warms up
            for side in sorted(runs, reverse=bool(repetition % 2)):
                began = time.perf_counter()
                for _ in range(options.steps):
                    runs[side]()
                if repetition >= 0:
                    rates[side].append(batch * options.steps / (time.perf_counter() - began))
        plain = Series(name=f"{name} by hand", unit="images/s", values=tuple(rates["by hand"]))
        found = Series(name=f"{name} as CaffeNet", unit="images/s", values=tuple(rates["CaffeNet"])).against(plain)
        promise = f"{name}: CaffeNet / by hand at least {RATIO_BAR:g}"
        bars.append(Bar(promise=promise, found=found.ratio, met=found.ratio >= RATIO_BAR))
        series += [plain, found]
    return series, bars


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=sorted(NETS), default=sorted(NETS), help="which (all)")
    parser.add_argument("--steps", type=int, default=5, help="steps of each side in a repetition (5)")
    parser.add_argument("--repetitions", type=int, default=7, help="of both sides in turn (7)")
    parser.add_argument("--channels-last", action="store_true", help="keep images in channels-last order")
    parser.add_argument("--output", type=Path, help="report file (runs/benchmarks/caffe_nets-<time>.json)")
    options = parser.parse_args()
    if min(options.steps, options.repetitions) < 1:
        parser.error("--steps and --repetitions must be at least 1")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    around = surroundings()
    series, bars = measure(options)
    print_table(series)
    print_bars(bars)
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    write_report(options.output, "caffe_nets", around=around, settings=settings, series=series, bars=bars)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
