"""What a data scientist gets for an afternoon: the same rows through four ways to learn on a Spark cluster.

`benchmarks/user_programs/` has a program for each, written as its users write it: `sparknet.ml`, Spark's own
`MultilayerPerceptronClassifier`, `TorchDistributor` with DistributedDataParallel, and XGBoost's
`SparkXGBClassifier`. The three networks have the same layers (128, 64) and pass over the rows equally often; the
perceptron's L-BFGS has ten iterations over all rows, and the trees are five, for each of these passes.

Each is a process of its own with a new `local[2]` session, since what a user waits for is a program. Measured are
the accuracy on rows that were held out, the seconds from the call to that figure (Spark is up by then, the rows are
cached), the greatest resident memory of the driver, Python and its Java machine together, and the lines of the
user's program that are neither empty nor comments. The accuracies of ways that are not networks are no bar; ours is
held against DistributedDataParallel's: at most a percentage point below it, in at most its time.

    python benchmarks/spark_ml.py                      # digits, 1,797 images of 8x8
    python benchmarks/spark_ml.py --data animals       # 10,000 of 28x28, of the package animal-shape-mnist 0.39

A way whose library is not installed is left out with a line.
"""

import argparse
import gzip
import importlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from measured import Bar, Series, print_bars, print_table, surroundings, write_report

WAYS = {
    "sparknet": "sparknet_estimator",
    "perceptron": "spark_perceptron",
    "ddp": "torch_distributor",
    "xgboost": "spark_xgboost",
}
EPOCHS = {"digits": 20, "animals": 10}
_WORKERS = 2
_ARRAYS = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _Arrays(pickle.Unpickler):
    """Admits numpy's arrays and nothing else: the file is a stranger's."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return super().find_class(module, name)


def rows_of(data: str) -> tuple[np.ndarray, np.ndarray]:
    """Features, float64 [n, pixels] in 0..1, and labels, int64 [n], in an order drawn with seed 0."""
    if data == "digits":
        from sklearn.datasets import load_digits

        features, labels = load_digits(return_X_y=True)
        features = features / 16
    else:
        files = metadata.files("animal-shape-mnist") or []
        found: dict[str, np.ndarray] = {}
        for kind in ("data", "label"):
            path = next(file for file in files if file.name == f"animal_{kind}_version_3.gz")
            with gzip.open(path.locate(), "rb") as file:
                found[kind] = np.asarray(_Arrays(file).load())
        features, labels = found["data"].reshape(len(found["data"]), -1) / 255, found["label"].reshape(-1)
    order = np.random.default_rng(0).permutation(len(labels))
    return features[order], labels[order].astype(np.int64)


def learn(way: str, data: str, epochs: int) -> dict[str, float]:
    """One way in this process."""
    from pyspark.ml.linalg import Vectors
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    builder: Any = SparkSession.builder.master(f"local[{_WORKERS}]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.ui.showConsoleProgress", "false").config("spark.log.level", "OFF").getOrCreate()
    features, labels = rows_of(data)
    held = len(labels) // 5
    frames = []
    for part in (slice(held, None), slice(0, held)):
        pairs = [(Vectors.dense(x), float(y)) for x, y in zip(features[part], labels[part], strict=True)]
        frame = spark.createDataFrame(pairs, ["features", "label"]).repartition(2 * _WORKERS).cache()
        frame.count()
        frames.append(frame)
    program = importlib.import_module(f"user_programs.{WAYS[way]}")
    with _Memory() as memory:
        began = time.perf_counter()
        accuracy = program.run(*frames, epochs=epochs, workers=_WORKERS)
        seconds = time.perf_counter() - began
    spark.stop()
    return {"accuracy": float(accuracy), "seconds": seconds, "driver_mb": memory.most / 1e6}


class _Memory:
    """The greatest resident memory of this process and its Java machine while the block runs."""

    def __init__(self) -> None:
        self.most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        own = psutil.Process()
        driver = [own, *(child for child in own.children() if child.name() == "java")]
        while not self._ended.wait(0.1):
            self.most = max(self.most, sum(process.memory_info().rss for process in driver))


def lines_of(way: str) -> int:
    """Lines of the user's program that are neither empty nor comments nor its first docstring."""
    text = (Path(__file__).parent / "user_programs" / f"{WAYS[way]}.py").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines()[1:]]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def main() -> int:
    """Measure every way that is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(EPOCHS), default="digits")
    parser.add_argument("--epochs", type=int, help="passes over the rows; not given: 20 of digits, 10 of animals")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--ways", default=",".join(WAYS), help="which of them")
    parser.add_argument("--output", type=Path, help="where the report goes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    epochs = arguments.epochs or EPOCHS[arguments.data]
    if arguments.one:
        print(json.dumps(learn(arguments.one, arguments.data, epochs)))
        return 0
    around = surroundings()
    ways = [way for way in arguments.ways.split(",") if _is_there(way)]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(arguments.repetitions):
        for way in ways:
            command = [sys.executable, __file__, "--one", way, "--data", arguments.data, "--epochs", str(epochs)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    series = [
        Series(name=f"{way}: {name}", unit=unit, values=tuple(one[key] for one in found[way]))
        for way in ways
        for name, key, unit in (
            ("accuracy", "accuracy", ""),
            ("time", "seconds", "s"),
            ("driver's memory", "driver_mb", "MB"),
        )
    ]
    series += [Series(name=f"{way}: lines", unit="", values=(float(lines_of(way)),)) for way in ways]
    print_table(series)
    bars: list[Bar] = []
    if {"sparknet", "ddp"} <= found.keys():
        named = {one.name: one for one in series}
        behind = named["ddp: accuracy"].median - named["sparknet: accuracy"].median
        share = named["sparknet: time"].against(named["ddp: time"]).ratio
        bars = [
            Bar(promise="accuracy at most 0.01 below DistributedDataParallel's", found=behind, met=behind <= 0.01),
            Bar(promise="at most DistributedDataParallel's time", found=share, met=share <= 1),
        ]
    print_bars(bars)
    settings = {"data": arguments.data, "epochs": epochs, "ways": ways}
    write_report(arguments.output, "spark_ml", around=around, settings=settings, series=series, bars=bars)
    return 0


def _is_there(way: str) -> bool:
    if way == "xgboost" and importlib.util.find_spec("xgboost") is None:
        print("xgboost is left out: it is not installed (pip install xgboost-cpu)")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
