"""Seconds and MB/s of reading and writing a weight file of CaffeNet's size, against the same bytes raw.

In every repetition, one after the other, so that a drift of the machine hits all alike:

- raw read: the file's bytes into memory; `read_weights`: into arrays by layer name; `load_weights`: into a net;
- raw write: the same bytes into a file beside it, flushed to the disk as our files are; `save_weights`: from a net;
- with `--hdf5` the same two of ours in HDF5.

The net has eight InnerProduct layers whose sizes add up to `--floats`. The file is in the page cache when read.
The exit code is 0 unless something broke; bars that are missed are printed and recorded.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from measured import Bar, Series, print_bars, print_table, surroundings, write_report
from sparknet.caffe import CaffeNet
from sparknet.caffe.weights.caffemodel import read_weights

READ_BAR_SECONDS = 1.0
WRITE_BAR_SECONDS = 3.0
_SHARES = (0.62, 0.28, 0.067, 0.022, 0.006, 0.003, 0.0015, 0.0005)  # of the layers, as in CaffeNet
_INPUTS = 64


def net_of(floats: int) -> CaffeNet:
    """A net with about so many parameters."""
    lines = [
        f'name: "wide"\nlayer {{ name: "data" type: "Input" top: "data" '
        f"input_param {{ shape {{ dim: 1 dim: {_INPUTS} }} }} }}"
    ]
    for number, share in enumerate(_SHARES):
        outputs = max(1, round(floats * share / (_INPUTS + 1)))
        lines.append(
            f'layer {{ name: "fc{number}" type: "InnerProduct" bottom: "data" top: "fc{number}" '
            f"inner_product_param {{ num_output: {outputs} }} }}"
        )
    net = CaffeNet.from_prototxt("\n".join(lines))
    torch.manual_seed(0)
    with torch.no_grad():
        for blob in net.learnable:
            blob.tensor.normal_()
    return net


def seconds(action: Callable[[], object]) -> float:
    """How long it takes; what it makes is thrown away outside the measurement."""
    began = time.perf_counter()
    made = action()
    took = time.perf_counter() - began
    del made
    return took


def write_raw(path: Path, data: bytes) -> None:
    """Bytes into a file and onto the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def measure(options: argparse.Namespace, folder: Path) -> tuple[list[Series], int]:
    """Run everything."""
    net = net_of(options.floats)
    path = folder / "net.caffemodel"
    net.save_weights(path)
    size = path.stat().st_size
    actions: dict[str, Callable[[], object]] = {
        "raw read": path.read_bytes,
        "read_weights": lambda: read_weights(path),
        "load_weights": lambda: net.load_weights(path),
        "raw write": lambda: write_raw(folder / "raw", data),
        "save_weights": lambda: net.save_weights(path),
    }
    if options.hdf5:
        hdf5 = folder / "net.caffemodel.h5"
        actions["save_weights .h5"] = lambda: net.save_weights(hdf5)
        actions["load_weights .h5"] = lambda: net.load_weights(hdf5)
    data = path.read_bytes()
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for repetition in range(-1, options.repetitions):  # the first one warms up and is not counted
        for name, action in actions.items():
            took = seconds(action)
            if repetition >= 0:
                taken[name].append(took)
    return _series(taken, size), size


def _series(taken: dict[str, list[float]], size: int) -> list[Series]:
    found = {name: Series(name=name, unit="s", values=tuple(values)) for name, values in taken.items()}
    rows: list[Series] = []
    for name, series in found.items():
        peer = "" if name.startswith("raw") else "raw write" if name.startswith("save") else "raw read"
        rows.append(series.against(found[peer]) if peer else series)
        rows.append(
            Series(name=f"{name}: speed", unit="MB/s", values=tuple(size / 1e6 / one for one in series.values))
        )
    return rows


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floats", type=int, default=61_000_000, help="weights of the net (61,000,000)")
    parser.add_argument("--repetitions", type=int, default=7, help="repetitions after the one to warm up (7)")
    parser.add_argument("--hdf5", action="store_true", help="also the HDF5 form")
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile (a temporary folder)")
    parser.add_argument("--output", type=Path, help="report file (runs/benchmarks/caffemodel-<time>.json)")
    options = parser.parse_args()
    if min(options.floats, options.repetitions) < 1:
        parser.error("--floats and --repetitions must be at least 1")
    around = surroundings()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        series, size = measure(options, Path(folder))
    by_name = {one.name: one.median for one in series}
    bars = [
        Bar(
            promise=f"read_weights at most {READ_BAR_SECONDS:g} s",
            found=by_name["read_weights"],
            met=by_name["read_weights"] <= READ_BAR_SECONDS,
        ),
        Bar(
            promise=f"save_weights at most {WRITE_BAR_SECONDS:g} s",
            found=by_name["save_weights"],
            met=by_name["save_weights"] <= WRITE_BAR_SECONDS,
        ),
    ]
    print(f"{size / 1e6:.1f} MB")
    print_table(series)
    print_bars(bars)
    settings = {"floats": options.floats, "bytes": size, "repetitions": options.repetitions}
    write_report(options.output, "caffemodel", around=around, settings=settings, series=series, bars=bars)


if __name__ == "__main__":
    main()
