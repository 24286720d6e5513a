"""The original SparkNet's programs, by their names and arguments: each is a configuration and a call.

The original looped for ever and kept nothing; these end after `--rounds`, or at Ctrl-C, and keep what every run
keeps.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparknet.cli.main import main
from sparknet.errors import UsageError

__all__ = ["App", "run_app", "run_featurizer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class App:
    """One of the original's programs."""

    file: str
    """The script's own, `__file__`: configurations are looked for from there."""
    about: str
    """What it trains."""
    config: str
    """File name of its configuration, in `configs/`."""
    rounds: int
    """How many by default: the original's never ended."""
    data: str = ""
    """Where its rows are, below SPARKNET_HOME; empty: in a bucket, which is its second argument."""
    net: str = ""
    """File name of its net, in `configs/`; empty: the configuration names one of the zoo."""


def run_app(app: App, arguments: Sequence[str] | None = None) -> int:
    """Run one of the original's programs.

    Args:
        app: which.
        arguments: as typed; not given: the process's own.

    Returns:
        The exit code of `sparknet train`.
    """
    given = _parser(app).parse_args(arguments)
    home = Path(os.environ.get("SPARKNET_HOME") or ".").resolve()
    try:
        config = _shipped(app, app.config)
        settings = [*_places(app, given, home), f"run.rounds={given.rounds}"]
        if app.net:
            settings.append(f"net.prototxt={str(_shipped(app, app.net))!r}")
    except UsageError as error:
        _parser(app).error(str(error))
    command = ["train", str(config), "--workers", str(given.workers)]
    if given.master:
        command += ["--master", given.master]
    if given.run_dir:
        command += ["--run-dir", str(given.run_dir)]
    for setting in (*settings, *given.set):
        command += ["--set", setting]
    return main(command)


def run_featurizer(file: str, arguments: Sequence[str] | None = None) -> int:
    """Run the original's FeaturizerApp: what a layer of the quick net makes of each image of CIFAR-10.

    The original took a net of random weights; this takes that of a run of `cifar_app.py`.

    Args:
        file: the script's own, `__file__`.
        arguments: as typed; not given: the process's own.

    Returns:
        The exit code of `sparknet featurize`.
    """
    parser = _featurizer_parser(file)
    given = parser.parse_args(arguments)
    # Names of runs end with their time.
    runs = sorted(path.parent for path in Path("runs").glob("cifar-app-*/result.json"))
    if not given.run and not runs:
        parser.error(
            f"{Path('runs').resolve()} has no finished run of cifar_app.py; run that first, or name a --run"
        )
    home = Path(os.environ.get("SPARKNET_HOME") or ".").resolve()
    command = ["featurize", given.run or str(runs[-1]), "--blobs", given.blob, "--to", given.to]
    command += ["--data", given.data or str(home / "data/cifar10"), "--workers", str(given.workers)]
    return main([*command, *(["--master", given.master] if given.master else [])])


def _featurizer_parser(file: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=Path(file).name, description="Write what a layer of a trained net makes of each image of CIFAR-10."
    )
    parser.add_argument("workers", type=_positive, metavar="N", help="Spark tasks at a time, where it is embedded")
    parser.add_argument("--run", metavar="DIR", help="a finished run (the last one of cifar_app.py in runs/)")
    parser.add_argument("--blob", default="ip1", metavar="NAME", help="the layer's output (ip1)")
    parser.add_argument(
        "--data", default="", metavar="PLACE", help="directory or URI of the images (SPARKNET_HOME/data/cifar10)"
    )
    parser.add_argument("--to", default="features.parquet", metavar="OUT", help="where to (features.parquet, here)")
    parser.add_argument("--master", metavar="URL", help="Spark master (spark-submit's, or one embedded session)")
    return parser


def _parser(app: App) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=Path(app.file).name, description=app.about)
    parser.add_argument("workers", type=_positive, metavar="N", help="workers, one Spark task each")
    if app.data:
        place = f"directory or URI of the data (SPARKNET_HOME/{app.data}; SPARKNET_HOME: the current directory)"
    else:
        parser.add_argument("bucket", nargs="?", default="", metavar="BUCKET", help="S3 bucket of the tar files")
        parser.add_argument(
            "--train-prefix",
            default="train.000",
            metavar="NAME",
            help="which tar files of ILSVRC2012_img_train are read: train. are all (train.000, as the original: a "
            "tenth of a thousand)",
        )
        parser.add_argument(
            "--val-prefix",
            default="val.00",
            metavar="NAME",
            help="the same of ILSVRC2012_img_val (val.00, as the original: ten of fifty)",
        )
        place = "directory or URI that holds what the bucket would, instead of BUCKET"
    parser.add_argument("--data", default="", metavar="PLACE", help=place)
    parser.add_argument("--master", metavar="URL", help="Spark master (spark-submit's, or one embedded session)")
    parser.add_argument(
        "--rounds", type=_positive, default=app.rounds, metavar="N", help=f"rounds to train ({app.rounds})"
    )
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="where log and model go (runs/<name>-<time>, from here)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="as for sparknet train"
    )
    return parser


def _places(app: App, given: argparse.Namespace, home: Path) -> list[str]:
    """The settings of where the rows are."""
    if app.data:
        place = given.data or str(home / app.data)
        return [f"data.path={place!r}", f"data.validation_path={place!r}"]
    if bool(given.data) == bool(given.bucket):
        raise UsageError(
            f"BUCKET is {given.bucket!r} and --data {given.data!r}; exactly one says where the tar files are: give "
            "BUCKET for S3, --data for a directory"
        )
    root = (given.data or f"s3://{given.bucket.removeprefix('s3://')}").rstrip("/")
    train, test = f"{given.train_prefix}*.tar", f"{given.val_prefix}*.tar"
    return [
        f"data.path={f'{root}/ILSVRC2012_img_train/{train}'!r}",
        f"data.validation_path={f'{root}/ILSVRC2012_img_val/{test}'!r}",
    ]


def _shipped(app: App, name: str) -> Path:
    """A file of `configs/`, beside the scripts' directory; where Spark has copied the script alone, from here."""
    beside = Path(app.file).resolve().parent.parent / "configs" / name
    # What spark-submit --files names lies in the directory that a driver on the cluster is started in.
    found = next((path for path in (beside, Path(name).resolve()) if path.exists()), None)
    if found is None:
        raise UsageError(f"there is no {beside}, and no {name} here; give it as spark-submit --files {name}")
    return found


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
