"""What a run directory in a store costs the rounds: the same run with one on a disk, measured beside it.

In every repetition, in one Spark session of two workers, one after the other: a run whose directory is local, and
one whose directory is on an S3 server of this machine (moto, in a process of its own), with a net of `--parameters`
and a checkpoint every third round. Timed from the commit of the first round to that of the last, by the times of
the `round` events: so checkpoints count, and what is sent beside the run counts as far as it slows the rounds.
Printed too is how long it took from the last round to the end of the run, when the store had all.

The server takes cores from the workers, which a real one does not: with few cores the ratio tells mostly of
that.
"""

import argparse
import itertools
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from torch import nn

from measured import Bar, Series, print_bars, print_table, surroundings, write_report
from sparknet.config import Cluster, RunConfig, load_config

CONFIG = Path(__file__).parent.parent / "configs" / "digits.toml"
RATIO_BAR = 1.05
_PATIENCE_SECONDS = 60.0


def wide(width: int) -> nn.Module:
    """A net of about width² parameters for the digits."""
    layers = (nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return nn.Sequential(nn.Flatten(), *layers)


def one_run(config: RunConfig, where: str, spark: Any) -> dict[str, float]:
    """Train; seconds of all rounds but the first, of the median round, and from the last to the end."""
    from sparknet.spark.running.run import train
    from sparknet.training.run_files.run_dir import RunDir

    rounds: list[float] = []

    def watch(record: dict[str, Any]) -> None:
        if record["event"] == "round":
            rounds.append(record["time"])

    with RunDir.create(where, config) as run_dir:
        train(config, run_dir, spark=spark, observers=[watch])
    gaps = [later - earlier for earlier, later in itertools.pairwise(rounds)]
    return {"all": rounds[-1] - rounds[0], "median": statistics.median(gaps), "end": time.time() - rounds[-1]}


@contextmanager
def s3_server(bucket: str) -> Generator[None]:
    """An S3 server in a process of its own, which this process finds in its environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }
    try:
        _wait_for(port)
        boto3.client("s3").create_bucket(Bucket=bucket)
        yield
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)  # a process that starts tells nobody when it listens


def measure(options: argparse.Namespace) -> tuple[list[Series], list[Bar]]:
    """Run everything."""
    from sparknet.spark.jobs.session import open_session

    found: dict[str, list[dict[str, float]]] = {"local": [], "store": []}
    with tempfile.TemporaryDirectory() as name, s3_server("runs"):
        place = Path(name)
        settings = [
            "net.name='run_dir:wide'",
            f"net.arguments={{ width = {int(options.parameters**0.5)} }}",
            "run.epochs=",
            f"run.rounds={options.rounds}",
            "run.eval_every=0",
            "run.checkpoint_every=3",
            "run.keep_checkpoints=2",
            "solver.batch_size=8",
            f"sync.local_steps={options.local_steps}",
            f"data.store={place / 'store'}",
        ]
        config = load_config(CONFIG, [*settings, *options.set])
        spark = open_session(Cluster(), workers=2, name="run_dir", log_path=place / "spark.log")
        for repetition in range(options.repetitions):
            for side, where in (("local", place / f"run{repetition}"), ("store", f"s3://runs/{repetition}")):
                found[side].append(one_run(config, str(where), spark))
                print(f"repetition {repetition + 1}: {side}: {found[side][-1]}", flush=True)
        spark.stop()
    series: list[Series] = []
    for part, told in (("all", "all rounds but the first"), ("median", "the median round"), ("end", "the end")):
        columns = {side: tuple(one[part] for one in runs) for side, runs in found.items()}
        local = Series(name=f"local: {told}", unit="s", values=columns["local"])
        store = Series(name=f"store: {told}", unit="s", values=columns["store"]).against(local)
        series += [local, store]
    ratio = series[1].ratio
    bar = Bar(promise=f"rounds with a store / local at most {RATIO_BAR:g}", found=ratio, met=ratio <= RATIO_BAR)
    return series, [bar]


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=60_000_000, help="of the net (60,000,000)")
    parser.add_argument("--rounds", type=int, default=13, help="of each run (13)")
    parser.add_argument("--local-steps", type=int, default=2, help="of a round (2)")
    parser.add_argument("--repetitions", type=int, default=3, help="of both sides in turn (3)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override the configuration"
    )
    parser.add_argument("--output", type=Path, help="report file (runs/benchmarks/run_dir-<time>.json)")
    options = parser.parse_args()
    # Workers import the net from here.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    )
    around = surroundings()
    series, bars = measure(options)
    print_table(series)
    print_bars(bars)
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    write_report(options.output, "run_dir", around=around, settings=settings, series=series, bars=bars)


if __name__ == "__main__":
    main()
