"""Reading, decoding, cutting and feeding images, each against a peer in the same repetition.

- shards: rows of 3x256x256 and 3x32x32 bytes, in order and in random batches, against a raw memory map of the same
  rows; both are copied into the same kind of fresh array;
- lmdb, tar, parquet: the readers' record batches, against batches of the same size copied out of a raw memory map;
- decode: photographs of 500x375 brought to 256x256 planes, against Pillow's decoder and resize; and read from a tar
  file on the way, against the same files in memory;
- cut: a random 224x224 square, mirror and mean of 256x3x256x256 bytes, against a loop over the images in numpy, and
  against the conversion of such squares to floats alone, which nobody can spare;
- loop: cifar10_quick trained with one thread on what the loader gives, against the same loop on one batch.

Parquet is read by pyarrow from a memory map, and its batches go through our checks; in a run Spark reads it.
Reading and decoding run with the allocator as it comes, as in Spark's tasks; what follows as in a training worker,
which keeps what it frees. The files are in the page cache. The exit code is 0 unless something broke; missed bars
are printed and recorded.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tarfile import TarFile, TarInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from measured import Bar, Series, print_bars, print_table, surroundings, write_report
from sparknet.caffe import CaffeNet, zoo
from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.loading.loader import Loader
from sparknet.data.loading.sampling_order import Cursor, Order
from sparknet.data.loading.transform import Normalise
from sparknet.data.rows.arrow_values import Rows, values_of
from sparknet.data.rows.column_plan import ColumnPlan
from sparknet.data.rows.columns import Column, ImageForm
from sparknet.data.rows.image_codec import decode_into, encode_jpeg
from sparknet.data.shards.shard_table import Shard, ShardTable
from sparknet.data.shards.shard_writer import ShardWriter
from sparknet.data.sources import datum
from sparknet.data.sources.files import Location
from sparknet.data.sources.registry import FORMATS
from sparknet.data.storage.place import LOCAL
from sparknet.spark.running.worker_task import keep_freed_memory

LARGE, SMALL = (3, 256, 256), (3, 32, 32)
BATCH = 256
CROP = 224
_BATCH_RECORDS = 42  # 8 MB, as the readers' batches are


@dataclass(frozen=True, kw_only=True, slots=True)
class Race:
    """Something of ours and its peer, which do the same work."""

    name: str
    unit: str
    amount: float
    """Units of work in one go."""
    ours: Callable[[], object]
    peer: Callable[[], object]
    peer_name: str
    bar: float | None
    """Least ratio of the speeds."""

    def run(self, repetitions: int) -> tuple[Series, Series]:
        """Alternate, the first time unmeasured."""
        speeds: dict[str, list[float]] = {"ours": [], "peer": []}
        for repetition in range(-1, repetitions):
            for side, action in (("peer", self.peer), ("ours", self.ours)):
                began = time.perf_counter()
                made = action()
                took = time.perf_counter() - began
                del made
                if repetition >= 0:
                    speeds[side].append(self.amount / took)
        peer = Series(name=f"{self.name}: {self.peer_name}", unit=self.unit, values=tuple(speeds["peer"]))
        ours = Series(name=self.name, unit=self.unit, values=tuple(speeds["ours"])).against(peer)
        return peer, ours


def shard_races(folder: Path, options: argparse.Namespace) -> Iterator[Race]:
    """In order and at random, large rows and small ones."""
    for shape, rows in ((LARGE, options.images), (SMALL, 40 * options.images)):
        directory = folder / f"shards-{shape[1]}"
        directory.mkdir()
        images = np.random.default_rng(0).integers(0, 256, (rows, *shape), np.uint8)
        np.save(directory / "raw.npy", images)
        columns = (Column(name="image", dtype="uint8", shape=shape), Column(name="label", dtype="int64", shape=()))
        writer = ShardWriter(directory, prefix="train", columns=columns, shard_bytes=images.nbytes // 3)
        writer.append({"image": images, "label": np.arange(rows) % 10})
        shards = [Shard(path=part.name, rows=part.statistics.rows) for part in writer.close()]
        table, raw = ShardTable(directory, shards, columns), np.load(directory / "raw.npy", mmap_mode="r")
        drawn = np.random.default_rng(1).permutation(rows)
        pieces = [slice(at, min(at + BATCH, rows)) for at in range(0, rows, BATCH)]
        name = "x".join(map(str, shape))
        yield Race(
            name=f"shards in order, {name}",
            unit="images/s",
            amount=rows,
            ours=lambda table=table, pieces=pieces: [
                np.require(table.slice(piece.start, piece.stop)["image"], requirements="W").shape
                for piece in pieces
            ],
            peer=lambda raw=raw, pieces=pieces: [np.array(raw[piece]).shape for piece in pieces],
            peer_name="memory map",
            bar=0.8,
        )
        yield Race(
            name=f"shards at random, {name}",
            unit="images/s",
            amount=rows,
            ours=lambda table=table, pieces=pieces, drawn=drawn: [
                table.take(drawn[piece])["image"].shape for piece in pieces
            ],
            peer=lambda raw=raw, pieces=pieces, drawn=drawn: [raw[drawn[piece]].shape for piece in pieces],
            peer_name="memory map",
            bar=0.6,
        )


def reader_races(folder: Path, options: argparse.Namespace) -> Iterator[Race]:
    """What the readers of databases, archives and tables make of records, and whoever copies raw ones."""
    rows = options.images
    images = np.random.default_rng(0).integers(0, 256, (rows, *LARGE), np.uint8)
    images.reshape(rows, -1)[:, :3] = (0xFF, 0xD8, 0xFF)  # as a JPEG begins, which the tar reader asks for
    np.save(folder / "records.npy", images)
    raw = np.load(folder / "records.npy", mmap_mode="r")
    with DatabaseWriter(folder / "lmdb") as writer:
        for number, image in enumerate(images):
            writer.append(datum.write(shape=LARGE, data=image.tobytes(), label=number % 10))
    _write_tar(folder, [image.tobytes() for image in images])
    flat = pa.array([image.tobytes() for image in images], pa.binary())
    pq.write_table(pa.table({"image": flat}), folder / "rows.parquet", compression="none", use_dictionary=False)
    del images, flat

    def copy_batches() -> None:
        for at in range(0, rows, _BATCH_RECORDS):
            np.array(raw[at : at + _BATCH_RECORDS])

    def read(kind: str, path: Path) -> None:
        where = Location(path=str(path))
        form = FORMATS[kind]
        count = sum(
            batch.num_rows
            for part in form.reader.open_source(where).partitions
            for batch in form.reader.read(part, LOCAL)
        )
        if count != rows:
            raise RuntimeError(f"{kind}: {count} rows were read of {rows}")

    def read_parquet() -> None:
        column, plan = Column(name="image", dtype="uint8", shape=LARGE), ColumnPlan(name="image", shape=LARGE)
        for batch in pq.ParquetFile(folder / "rows.parquet", memory_map=True).iter_batches(_BATCH_RECORDS):
            values_of(batch.column(0), column=column, plan=plan, rows=Rows(partition=0, first=0))

    sides: dict[str, tuple[Callable[[], None], float | None]] = {
        "lmdb": (lambda: read("lmdb", folder / "lmdb"), 0.4),
        "tar": (lambda: read("image_tar", folder / "train.tar"), None),
        "parquet, uncompressed": (read_parquet, 0.3),
    }
    for name, (ours, bar) in sides.items():
        yield Race(
            name=name,
            unit="images/s",
            amount=rows,
            ours=ours,
            peer=copy_batches,
            peer_name="memory map",
            bar=bar,
        )


def _write_tar(folder: Path, files: Sequence[bytes]) -> None:
    names = [f"{number:06d}.jpg" for number in range(len(files))]
    with TarFile(folder / "train.tar", "w") as archive:
        for name, file in zip(names, files, strict=True):
            member = TarInfo(name)
            member.size = len(file)
            archive.addfile(member, BytesIO(file))
    lines = (f"{name} {number % 10}\n" for number, name in enumerate(names))
    (folder / "train.txt").write_text("".join(lines), encoding="utf-8")


def decode_races(folder: Path, options: argparse.Namespace) -> Iterator[Race]:
    """Photographs of the size that ImageNet's mostly have."""
    photographs = [Image.fromarray(image).resize((500, 375)) for image in load_sample_images().images]
    files = [encode_jpeg(np.asarray(image), quality=90) for image in photographs]
    count, form, out = 60, ImageForm(), np.empty(LARGE, np.uint8)

    def ours() -> None:
        for number in range(count):
            decode_into(out, files[number % len(files)], form=form)

    def pillow() -> None:
        for number in range(count):
            image = Image.open(BytesIO(files[number % len(files)])).convert("RGB")
            np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR)).transpose(2, 0, 1).copy()

    yield Race(
        name="decode + resize to 256x256",
        unit="images/s",
        amount=count,
        ours=ours,
        peer=pillow,
        peer_name="Pillow",
        bar=2.0,
    )
    yield _from_archive(folder / "photographs", [files[number % len(files)] for number in range(4 * count)])


def _from_archive(directory: Path, files: Sequence[bytes]) -> Race:
    """The same photographs decoded as they come from a tar file."""
    directory.mkdir()
    # Each a copy of its own, as those from the archive are: two files alone would stay in the nearest cache.
    many, out = [bytes(bytearray(file)) for file in files], np.empty(LARGE, np.uint8)
    _write_tar(directory, many)

    def in_memory() -> None:
        for file in many:
            decode_into(out, file, form=ImageForm())

    def from_tar() -> None:
        reader, where = FORMATS["image_tar"].reader, Location(path=str(directory / "train.tar"))
        for part in reader.open_source(where).partitions:
            for batch in reader.read(part, LOCAL):
                for cell in batch.column("image"):
                    decode_into(out, cell.as_buffer(), form=ImageForm())

    return Race(
        name="tar, decode + resize to 256x256",
        unit="images/s",
        amount=len(many),
        ours=from_tar,
        peer=in_memory,
        peer_name="the same files in memory",
        bar=0.9,
    )


def cut_races(folder: Path, options: argparse.Namespace) -> Iterator[Race]:
    """A batch for a net that takes 224x224."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (BATCH, *LARGE), np.uint8)
    draws = random.integers(0, 1 << 32, (BATCH, 4), np.uint32)
    ys, xs = random.integers(0, LARGE[1] - CROP + 1, (2, BATCH))
    mirrored = random.integers(0, 2, BATCH)
    mean = random.random(LARGE, np.float32) * 255

    def loop() -> np.ndarray:
        made = []
        for image, y, x, mirror in zip(images, ys, xs, mirrored, strict=True):
            one = image.astype(np.float32) - mean
            one = one[:, y : y + CROP, x : x + CROP]
            made.append(one[:, :, ::-1] if mirror else one)
        return np.stack(made)

    def convert() -> np.ndarray:
        # The limit: the same windows as floats, neither mirrored nor with anything taken off.
        made = np.empty((BATCH, LARGE[0], CROP, CROP), np.float32)
        for one, image, y, x in zip(made, images, ys, xs, strict=True):
            np.copyto(one, image[:, y : y + CROP, x : x + CROP])
        return made

    normalise = Normalise(mean=mean, scale=1.0, crop=CROP, cut="random", mirror=True)
    sides: tuple[tuple[int, Callable[[], np.ndarray], str, float], ...] = (
        (1, loop, "numpy loop", 2.5),
        (2, loop, "numpy loop", 2.5),
        (1, convert, "conversion alone", 0.4),
    )
    for threads, peer, peer_name, bar in sides:
        yield Race(
            name=f"crop + mirror + mean image, {threads} thread{'s' * (threads > 1)}",
            unit="images/s",
            amount=BATCH,
            ours=lambda threads=threads: normalise(images, draws, threads=threads),
            peer=peer,
            peer_name=peer_name,
            bar=bar,
        )


def loop_races(folder: Path, options: argparse.Namespace) -> Iterator[Race]:
    """What feeding costs a training step of a small net, which needs the most images."""
    directory = folder / "cifar"
    directory.mkdir()
    random, rows, batch, steps = np.random.default_rng(0), 10_000, 100, options.steps
    columns = (Column(name="image", dtype="uint8", shape=SMALL), Column(name="label", dtype="int64", shape=()))
    writer = ShardWriter(directory, prefix="train", columns=columns, shard_bytes=8 << 20)
    images, labels = random.integers(0, 256, (rows, *SMALL), np.uint8), random.integers(0, 10, rows)
    writer.append({"image": images, "label": labels})
    shards = [Shard(path=part.name, rows=part.statistics.rows) for part in writer.close()]
    table = ShardTable(directory, shards, columns)
    normalise = Normalise(mean=random.random(SMALL, np.float32) * 255, scale=1.0)
    net = CaffeNet(zoo.cifar10_quick(), "TRAIN", input_shapes={"data": (batch, *SMALL), "label": (batch,)})
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)

    def step(images: np.ndarray, labels: np.ndarray) -> None:
        optimizer.zero_grad(set_to_none=True)
        inputs = {"data": torch.from_numpy(images), "label": torch.from_numpy(labels)}
        net.loss(net(inputs)).backward()
        optimizer.step()

    def fed() -> None:
        order = Order(0, table.shard_rows, 1, 0)
        loader = Loader(table, order, batch_size=batch, cursor=Cursor(), preprocess={"image": normalise})
        with loader:
            for _ in range(steps):
                one = next(loader)
                step(one.columns["image"], one.columns["label"])

    images, labels = normalise(table.slice(0, batch)["image"], None), np.array(table.slice(0, batch)["label"])

    def cached() -> None:
        for _ in range(steps):
            step(images, labels)

    yield Race(
        name="cifar10_quick fed by the loader",
        unit="images/s",
        amount=steps * batch,
        ours=fed,
        peer=cached,
        peer_name="one batch in memory",
        bar=0.97,
    )


RACES: dict[str, Callable[[Path, argparse.Namespace], Iterator[Race]]] = {
    "readers": reader_races,
    "decode": decode_races,
    "shards": shard_races,
    "cut": cut_races,
    "loop": loop_races,
}


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9, help="repetitions after the one to warm up (9)")
    parser.add_argument("--images", type=int, default=1500, help="images of 3x256x256 that are read (1500)")
    parser.add_argument("--steps", type=int, default=30, help="training steps in one go (30)")
    parser.add_argument("--only", action="append", choices=list(RACES), help="a part; may be repeated (all)")
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile (a temporary folder)")
    parser.add_argument("--output", type=Path, help="report file (runs/benchmarks/data-<time>.json)")
    options = parser.parse_args()
    if min(options.repetitions, options.steps) < 1 or options.images < BATCH:
        parser.error(f"--repetitions and --steps must be at least 1 and --images at least {BATCH}")
    around = surroundings()
    torch.set_num_threads(1)
    series, bars = list[Series](), list[Bar]()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for part in [part for part in RACES if not options.only or part in options.only]:
            if part not in ("readers", "decode"):
                keep_freed_memory()
            for race in RACES[part](Path(folder), options):
                peer, ours = race.run(options.repetitions)
                series += (peer, ours)
                if race.bar is not None:
                    promise = f"{race.name}: at least {race.bar:g} x {race.peer_name}"
                    bars.append(Bar(promise=promise, found=ours.ratio, met=ours.ratio >= race.bar))
                print(f"{race.name}: {ours.ratio:.2f}", flush=True)
    print_table(series)
    print_bars(bars)
    settings = {key: getattr(options, key) for key in ("repetitions", "images", "steps")}
    write_report(options.output, "data", around=around, settings=settings, series=series, bars=bars)


if __name__ == "__main__":
    main()
