"""What a column of predictions costs: rows/s of `infer` over a cached DataFrame against a bare PyTorch loop.

Two tables of random rows, each with its net: pixels, 3x32x32 bytes in a binary column, through Caffe's
cifar10_quick, and 100 float32 numbers as arrays, through the zoo's net
for tables. Both sides use one thread and
the same batches:

- by hand: the rows as numpy arrays in memory, mean and scale taken by numpy, the same net, argmax; nothing else;
- the system: `sparknet.spark.inference.infer` in a `local[1]` session over a DataFrame that Spark holds in memory,
  one column `prediction`, summed, so that every row's prediction is there and no other column is collected.

A first pass of each side, which starts Python workers and builds the net, is not timed. The sides take turns, and
ratios are taken repetition by repetition. With `--cores 1` Spark's Java machine, which hands the rows over, shares
the core with the net; without it may run beside. The exit code is 0 unless something broke; a bar that is missed is
printed and recorded.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from measured import Bar, Series, print_bars, print_table, surroundings, write_report
from sparknet.config import Data, Net, load_config
from sparknet.data.loading.transform import Normalise
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.spark.inference import InferenceSettings, Wanted, infer
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.saved_model import Description, Model

CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_quick.toml"
RATIO_BAR = 0.9
_LABEL = Column(name="label", dtype="int64", shape=(), classes=10)


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Case:
    """One table and its net."""

    name: str
    model: Model
    rows: np.ndarray
    frame: DataFrame


def _model(net: Net, data: Data, column: Column, chain: Normalise) -> Model:
    rows = RowSchema(inputs=(column,), targets=(_LABEL,))
    description = Description(net=net, rows=rows, data=data)
    objective = build_objective(Recipe.read(net), rows, batch_size=1, seed=0, data=data)
    return Model(description=description, objective=objective, chain={column.name: chain})


def _pixels(spark: SparkSession, count: int) -> _Case:
    net = load_config(CONFIG, []).net
    rows = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)
    data = Data(source="parquet", path="none", validation_fraction=0.5, shape=(3, 32, 32))
    column = Column(name="image", dtype="uint8", shape=(3, 32, 32))
    mean = np.full((3, 32, 32), 120, np.float32)
    cells = pa.array([row.tobytes() for row in rows], pa.binary())
    return _Case(
        name="pixels",
        model=_model(net, data, column, Normalise(mean=mean, scale=1.0)),
        rows=rows,
        frame=_cached(spark, pa.table({"image": cells})),
    )


def _numbers(spark: SparkSession, count: int) -> _Case:
    rows = np.random.default_rng(0).normal(size=(count, 100)).astype(np.float32)
    data = Data(source="parquet", path="none", image="x", validation_fraction=0.5)
    column = Column(name="x", dtype="float32", shape=(100,))
    net = Net(name="adult")
    flat = pa.array(rows.reshape(-1))
    cells = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * 100), flat)
    return _Case(
        name="numbers",
        model=_model(net, data, column, Normalise(mean=None, scale=1.0)),
        rows=rows,
        frame=_cached(spark, pa.table({"x": cells})),
    )


def _cached(spark: SparkSession, table: pa.Table) -> DataFrame:
    frame = spark.createDataFrame(table).coalesce(1).persist(StorageLevel.MEMORY_ONLY)
    frame.count()
    return frame


def _by_hand(case: _Case, batch: int) -> Callable[[], float]:
    objective, name = case.model.objective, case.model.description.rows.input.name
    normalise, module = case.model.chain[name], case.model.objective.module

    def run() -> float:
        module.eval()
        total = 0.0
        with torch.no_grad():
            for at in range(0, len(case.rows), batch):
                given = torch.from_numpy(normalise(case.rows[at : at + batch]))
                total += float(objective.scores({name: given}).argmax(1).sum())
        return total

    return run


def _system(case: _Case, batch: int) -> Callable[[], float]:
    settings = InferenceSettings(batch_size=batch, device="cpu")

    def run() -> float:
        found = infer(case.frame, case.model, Wanted(prediction="prediction"), settings=settings)
        return float(found.agg(F.sum("prediction")).collect()[0][0])

    return run


def _seconds(run: Callable[[], float], expected: float) -> float:
    began = time.perf_counter()
    found = run()
    # Equal scores may fall either way; more than a few are another net.
    if abs(found - expected) > 1e-3 * max(1.0, expected):
        sys.exit(f"the predictions sum to {found}, and by hand to {expected}: the two sides do not do the same")
    return time.perf_counter() - began


def _measure(case: _Case, options: argparse.Namespace) -> tuple[list[Series], Bar]:
    hand, system = _by_hand(case, options.batch), _system(case, options.batch)
    expected = hand()
    _seconds(system, expected)
    rates: dict[str, list[float]] = {"by hand": [], "infer": []}
    for _ in range(options.repetitions):
        for side, run in (("by hand", hand), ("infer", system)):
            rates[side].append(len(case.rows) / _seconds(run, expected))
    ratios = [mine / theirs for mine, theirs in zip(rates["infer"], rates["by hand"], strict=True)]
    peer = f"{case.name} by hand"
    series = [
        Series(name=peer, unit="rows/s", values=tuple(rates["by hand"])),
        Series(
            name=f"{case.name} infer",
            unit="rows/s",
            values=tuple(rates["infer"]),
            peer=peer,
            ratios=tuple(ratios),
        ),
    ]
    found = statistics.median(ratios)
    promise = f"{case.name}: at least {RATIO_BAR:g} of the rows/s by hand"
    return series, Bar(promise=promise, found=found, met=found >= RATIO_BAR)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8_000, help="rows of pixels (8,000)")
    parser.add_argument("--numbers", type=int, default=400_000, help="rows of numbers (400,000)")
    parser.add_argument("--batch", type=int, default=128, help="rows of a forward pass (128)")
    parser.add_argument("--repetitions", type=int, default=5, help="of both sides in turn (5)")
    parser.add_argument("--cores", type=int, help="let everything, Spark too, run on so many cores only")
    parser.add_argument("--output", type=Path, help="report file (runs/benchmarks/inference-<time>.json)")
    options = parser.parse_args()
    if min(options.rows, options.numbers, options.batch, options.repetitions) < 1:
        parser.error("--rows, --numbers, --batch and --repetitions must be at least 1")
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    torch.set_num_threads(1)
    around = surroundings()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    series, bars = list[Series](), list[Bar]()
    for make, count in ((_pixels, options.rows), (_numbers, options.numbers)):
        found, bar = _measure(make(spark, count), options)
        series, bars = [*series, *found], [*bars, bar]
    spark.stop()
    print_table(series)
    print_bars(bars)
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    write_report(options.output, "inference", around=around, settings=settings, series=series, bars=bars)


if __name__ == "__main__":
    main()
