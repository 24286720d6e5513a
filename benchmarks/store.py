"""What it costs that shards lie far away: training from an object store against training from a local directory.

1. Speed. A loop in PyTorch over cifar10_quick takes its batches from a loader over shards of random rows in
   CIFAR-10's form: from a local directory, in the order for shards in place, and from an object store by way of an
   empty cache, in the order for fetched shards. The store is moto behind a proxy that adds `--latency` to every
   request and shares `--megabytes-per-second` among all answers. Images/s from the first batch on; what the first
   batch waited for is told beside it.
2. Traffic. Two hosts (two cache directories) of two workers each read whole epochs; the bytes that each host
   fetches, as a multiple of the data set, for caches of several sizes.

The server is a process of its own. The exit code is 0 unless something broke; a bar that is missed is printed and
recorded.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from by_hand import NETS
from measured import Bar, Series, print_bars, print_table, surroundings, write_report
from sparknet.data.loading.loader import Loader
from sparknet.data.loading.sampling_order import Cursor, Order
from sparknet.data.loading.shard_order import ShardOrder
from sparknet.data.loading.transform import Normalise
from sparknet.data.rows.columns import Column
from sparknet.data.shards.host_cache import CachePlace
from sparknet.data.shards.shard_files import Copies, StoredFiles
from sparknet.data.shards.shard_table import Shard, ShardTable, ShardWriter
from sparknet.data.storage.place import Storage

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

SPEED_BAR = 0.97
BATCH = 64
COLUMNS = (
    Column(name="image", dtype="uint8", shape=(3, 32, 32)),
    Column(name="label", dtype="int64", shape=(), classes=10),
)


def make_shards(directory: Path, options: argparse.Namespace) -> list[Shard]:
    """Shards of random rows."""
    random = np.random.default_rng(0)
    writer = ShardWriter(directory, prefix="train", columns=COLUMNS, shard_bytes=int(options.shard_megabytes * 1e6))
    for at in range(0, options.rows, 5000):
        count = min(5000, options.rows - at)
        images = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        writer.append({"image": images, "label": random.integers(0, 10, count)})
    return [
        Shard(path=one.name, rows=one.statistics.rows, bytes=one.bytes, sha256=one.sha256) for one in writer.close()
    ]


def serve(pipe, latency: float, rate: float) -> None:
    """The server's process, until it is ended."""
    from s3_server import s3_server

    with s3_server("bucket") as server:
        server.latency_seconds, server.bytes_per_second = latency, rate
        pipe.send((server.endpoint, server.direct))
        pipe.recv()


class Counted:
    """A source that counts the bytes it gives."""

    def __init__(self, source) -> None:
        self._source = source
        self.bytes = 0

    def pieces(self, name: str) -> Iterator[bytes]:
        """As `FileSource.pieces`."""
        for piece in self._source.pieces(name):
            self.bytes += len(piece)
            yield piece


class Directory:
    """Files of a local directory, as a source."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pieces(self, name: str) -> Iterator[bytes]:
        """As `FileSource.pieces`."""
        yield (self._path / name).read_bytes()


def train(table: ShardTable, order, steps: int) -> tuple[float, float]:
    """Images/s over the steps after the first, and seconds until the first batch was there."""
    torch.manual_seed(0)
    net = NETS["cifar10_quick"]()
    solver = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    normalise = {"image": Normalise(mean=None, scale=1 / 256)}
    began = time.perf_counter()
    with table, Loader(table, order, batch_size=BATCH, cursor=Cursor(), preprocess=normalise) as loader:
        for step in range(steps + 1):
            batch = next(loader)
            if step == 0:
                first = time.perf_counter() - began
            loss = torch.nn.functional.cross_entropy(
                net(torch.from_numpy(batch.columns["image"])), torch.from_numpy(batch.columns["label"])
            )
            solver.zero_grad()
            loss.backward()
            solver.step()
            if step == 0:
                began = time.perf_counter()
        return steps * BATCH / (time.perf_counter() - began), first


def measure_speed(options: argparse.Namespace, work: Path, shards: list[Shard]) -> tuple[list[Series], list[Bar]]:
    """Both sides in turn."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    server = spawn.Process(
        target=serve, args=(theirs, options.latency, options.megabytes_per_second * 1e6), daemon=True
    )
    server.start()
    endpoint, direct = ours.recv()
    for shard in shards:  # past the proxy
        (Storage(s3_endpoint=direct).place("s3://bucket/store") / shard.path).upload(work / "store" / shard.path)
    place = Storage(s3_endpoint=endpoint).place("s3://bucket/store")
    rows = [shard.rows for shard in shards]
    steps = sum(rows) // BATCH - 1
    found: dict[str, list[tuple[float, float]]] = {"local": [], "object store": []}
    for repetition in range(options.repetitions):
        local = ShardTable(work / "store", shards, COLUMNS)
        found["local"].append(train(local, Order(0, rows, 1, 0), steps))
        cache = CachePlace(directory=str(work / f"cache{repetition}"), gigabytes=1)
        files = Copies(StoredFiles(directory=place), cache, where=place.uri)
        found["object store"].append(train(ShardTable(files, shards, COLUMNS), ShardOrder(0, rows, 1, 0), steps))
        print(f"repetition {repetition + 1}: {found['local'][-1]} {found['object store'][-1]}", flush=True)
    ours.send("end")
    server.join()
    local = Series(name="local", unit="images/s", values=tuple(rate for rate, _ in found["local"]))
    remote = Series(name="object store", unit="images/s", values=tuple(rate for rate, _ in found["object store"]))
    remote = remote.against(local)
    waits = [
        Series(name=f"{side}: first batch", unit="s", values=tuple(first for _, first in values))
        for side, values in found.items()
    ]
    promise = f"object store / local at least {SPEED_BAR:g}, from the first batch on, cache empty"
    return [local, remote, *waits], [Bar(promise=promise, found=remote.ratio, met=remote.ratio >= SPEED_BAR)]


def measure_traffic(options: argparse.Namespace, work: Path, shards: list[Shard]) -> list[Series]:
    """Bytes that each of two hosts fetches in each epoch, over the bytes of the data set."""
    whole = sum(shard.bytes for shard in shards)
    rows = [shard.rows for shard in shards]
    series: list[Series] = []
    for share in options.cache_shares:
        sources = [Counted(Directory(work / "store")) for _ in range(2)]
        readers = []
        for slot in range(4):
            host = slot % 2
            cache = CachePlace(directory=str(work / f"host{host}-{share}"), gigabytes=share * whole / 1e9)
            table = ShardTable(Copies(sources[host], cache, where="store"), shards, COLUMNS)
            order = ShardOrder(0, rows, 4, slot)
            readers.append((table, order, Loader(table, order, batch_size=BATCH, cursor=Cursor(), preprocess=None)))
        fetched: list[list[float]] = []
        for _ in range(options.epochs):
            before = [source.bytes for source in sources]
            # In step, as workers that average are.
            for _ in range(len(readers[0][1]) // BATCH):
                for _, _, loader in readers:
                    next(loader)
            fetched.append(
                [(source.bytes - already) / whole for source, already in zip(sources, before, strict=True)]
            )
        for table, _, loader in readers:
            loader.close()
            table.close()
        for host in range(2):
            told = " ".join(f"{epoch[host]:.2f}" for epoch in fetched)
            print(f"cache of {share:g} x the data, host {host}: copies fetched in each epoch: {told}", flush=True)
            values = tuple(epoch[host] for epoch in fetched)
            series.append(Series(name=f"cache {share:g} x data, host {host}", unit="copies", values=values))
    return series


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="training rows (20,000)")
    parser.add_argument("--shard-megabytes", type=float, default=1.0, help="size of a shard (1)")
    parser.add_argument("--repetitions", type=int, default=3, help="of both sides in turn (3)")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds of each request (0.02)")
    parser.add_argument("--megabytes-per-second", type=float, default=100.0, help="of all answers (100)")
    parser.add_argument("--epochs", type=int, default=4, help="of the traffic (4)")
    parser.add_argument(
        "--cache-shares", type=float, nargs="+", default=[1.1, 0.75, 0.5], help="caches over data (1.1 0.75 0.5)"
    )
    parser.add_argument("--output", type=Path, help="report file (runs/benchmarks/store-<time>.json)")
    options = parser.parse_args()
    if min(options.rows // BATCH, options.repetitions, options.epochs) < 1:
        parser.error("--rows must be a batch at least, --repetitions and --epochs 1")
    os.environ.update(AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_REGION="us-east-1")
    torch.set_num_threads(1)
    around = surroundings()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "store").mkdir()
        shards = make_shards(work / "store", options)
        traffic = measure_traffic(options, work, shards)
        speed, bars = measure_speed(options, work, shards)
    series = [*speed, *traffic]
    print_table(series)
    print_bars(bars)
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    write_report(options.output, "store", around=around, settings=settings, series=series, bars=bars)


if __name__ == "__main__":
    main()
