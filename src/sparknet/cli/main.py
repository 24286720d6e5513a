"""`sparknet`: parses first, imports torch and pyspark only for the command that needs them."""

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from sparknet import __version__
from sparknet.cli.notes import notes_on_screen
from sparknet.cli.spoken import spoken
from sparknet.errors import SparkNetError

__all__ = ["main", "run"]

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells know it."""
BROKEN_PIPE = 141
"""Exit code when nobody reads the output any more, as shells know it."""
_LMDB = (
    "Write the rows of a source as LMDB databases of Datum records, which Caffe's own tools read. Image files "
    "become pixels with their colours in Caffe's order, BGR."
)
# Of `data.sources.registry.FORMATS`, which would cost half a second to import; a test holds them together. Not
# `net`, which is taken where a net makes its own rows and nothing is given.
_SOURCE_HELP = (
    "KIND:PATH, with KIND lmdb, image_tar, image_folder, image_list, windows, hdf5, cifar10, mnist, parquet or "
    "csv; or digits"
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 for a failure, 2 for wrong usage, 130 when interrupted."""
    parsed = _parser().parse_args(arguments)
    # A scheduler's way to stop a run: it ends like Ctrl-C, with its workers stopped and its files whole.
    signal.signal(signal.SIGTERM, _interrupt)
    # py4j logs an interrupt that cuts into a call as if it were an error; we say what there is to say.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        # The command's module is named, not imported, so that --help and wrong usage answer at once.
        with notes_on_screen():
            return importlib.import_module(parsed.module).run(parsed)
    except SparkNetError as error:
        print(f"sparknet: error: {spoken(str(error), parsed)}", file=sys.stderr)
        # What failed beside the error itself, as the log that was kept or a disk that was full.
        for note in getattr(error, "__notes__", []):
            print(f"sparknet: {note}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read the output (a pager, head) has gone: end as a command in a pipe does, without a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print("sparknet: interrupted", file=sys.stderr)
        return INTERRUPTED


def run() -> None:
    """The console script."""
    sys.exit(main())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparknet",
        description="Train neural networks on the Spark cluster you already have.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"sparknet {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_train(commands)
    _add_resume(commands)
    _add_test(commands)
    _add_predict(commands)
    _add_featurize(commands)
    _add_doctor(commands)
    _add_gpus(commands)
    _add_caffe(commands)
    _add_data(commands)
    _add_plot(commands)
    _add_pack(commands)
    return parser


# Its public name is missing from argparse; only annotations use it.
_Commands = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]


def _add_train(commands: "_Commands[argparse.ArgumentParser]") -> None:
    train = commands.add_parser("train", help="train a net as a configuration file or a Caffe solver says")
    train.set_defaults(module="sparknet.cli.train")
    train.add_argument(
        "config", type=Path, metavar="CONFIG", nargs="?", help="TOML file, for example configs/digits.toml"
    )
    caffe = train.add_argument_group("with Caffe's files, instead of CONFIG")
    caffe.add_argument("--solver", type=Path, metavar="FILE", help="solver prototxt")
    caffe.add_argument(
        "--net", type=Path, metavar="FILE", help="net prototxt, instead of the one that the solver names"
    )
    caffe.add_argument(
        "--data",
        metavar="SOURCE",
        help=f"{_SOURCE_HELP}; not given: what the net's Data, ImageData and HDF5Data layers name, or what its "
        "own layers make",
    )
    caffe.add_argument("--weights", default="", metavar="FILES", help="caffemodel files to start from, with commas")
    caffe.add_argument("--snapshot", default="", metavar="FILE", help="solverstate to go on from")
    train.add_argument(
        "--run-dir",
        metavar="DIR",
        help="directory or URI that everything about the run goes to (runs/<name>-<time>)",
    )
    _add_overrides(train)


def _add_resume(commands: "_Commands[argparse.ArgumentParser]") -> None:
    resume = commands.add_parser("resume", help="go on with a run from its last good checkpoint")
    resume.set_defaults(module="sparknet.cli.resume")
    resume.add_argument("run_dir", metavar="RUN_DIR", help="the run's directory or URI")
    _add_overrides(resume)


def _add_test(commands: "_Commands[argparse.ArgumentParser]") -> None:
    test = commands.add_parser("test", help="measure a finished run's model, or a Caffe model, on rows")
    test.set_defaults(module="sparknet.cli.test")
    test.add_argument("run_dir", metavar="RUN_DIR", nargs="?", help="the run's directory or URI")
    test.add_argument(
        "--data",
        metavar="ROWS",
        help="rows to test on. Of a run: a PATH to rows of the same kind as the training rows; not given: the "
        f"run's validation rows. With --model: {_SOURCE_HELP}; not given: what the net's Data, ImageData and "
        "HDF5Data layers of phase TEST name, or what its own layers make",
    )
    caffe = test.add_argument_group("with Caffe's files, instead of RUN_DIR")
    caffe.add_argument("--model", type=Path, metavar="FILE", help="net prototxt")
    caffe.add_argument("--weights", metavar="FILES", help="caffemodel files, with commas")
    caffe.add_argument(
        "--iterations",
        type=_positive,
        metavar="N",
        help="test N batches of the net's batch size, from the first row again behind the last (all rows once)",
    )
    _add_net_state(caffe.add_argument)
    _add_overrides(test)


def _add_predict(commands: "_Commands[argparse.ArgumentParser]") -> None:
    predict = commands.add_parser(
        "predict",
        help="write what a trained net takes rows for",
        description="Give rows to a finished run's model, or to a Caffe model, and write them with what it takes "
        "them for: the class, its name where classes have names, or numbers. Images are not written.",
    )
    _add_inference(predict)
    predict.add_argument(
        "--columns",
        action="extend",
        type=_choices("probability", "raw"),
        default=[],
        metavar="NAMES",
        help="further columns, with commas: probability of each class, raw scores",
    )


def _add_featurize(commands: "_Commands[argparse.ArgumentParser]") -> None:
    featurize = commands.add_parser(
        "featurize",
        help="write what parts of a trained net make of rows",
        description="Give rows to a finished run's model, or to a Caffe model, and write them with what is then in "
        "blobs of the net, or what parts of a module return. Images are not written.",
    )
    _add_inference(featurize)
    featurize.add_argument(
        "--blobs",
        action="extend",
        type=_names,
        required=True,
        metavar="NAMES",
        help="blobs of a Caffe net, or dotted names of a module's parts, with commas: a column each",
    )


def _add_inference(command: argparse.ArgumentParser) -> None:
    command.set_defaults(module="sparknet.cli.predict", command=command.prog.rpartition(" ")[2])
    command.add_argument("run_dir", metavar="RUN_DIR", nargs="?", help="the run's directory or URI")
    command.add_argument(
        "--data",
        metavar="ROWS",
        help="the rows. Of a run: a PATH to rows of the same kind as the training rows, which need no label. With "
        f"--model: {_SOURCE_HELP}; not given: what the net's data layers of phase TEST name",
    )
    command.add_argument(
        "--to", required=True, metavar="OUT", help="directory or URI to write, which ends in .parquet or .csv"
    )
    command.add_argument("--overwrite", action="store_true", help="replace what is there")
    command.add_argument(
        "--invalid",
        choices=("error", "skip", "keep"),
        default="error",
        help="of rows that cannot be used: an error that names one, leave them out, or write them without results "
        "(error)",
    )
    command.add_argument(
        "--batch-size", type=_positive, default=128, metavar="N", help="rows of a forward pass (128)"
    )
    caffe = command.add_argument_group("with Caffe's files, instead of RUN_DIR")
    caffe.add_argument("--model", type=Path, metavar="FILE", help="net prototxt, train_val or deploy")
    caffe.add_argument("--weights", metavar="FILES", help="caffemodel files, with commas")
    _add_net_state(caffe.add_argument)
    _add_overrides(command)


def _add_doctor(commands: "_Commands[argparse.ArgumentParser]") -> None:
    doctor = commands.add_parser("doctor", help="check Java, Spark, torch, ports, disk and routes between workers")
    doctor.set_defaults(module="sparknet.cli.doctor")
    doctor.add_argument(
        "--workers", type=_positive, default=2, metavar="N", help="workers to try routes between (2)"
    )
    doctor.add_argument("--master", metavar="URL", default="", help="Spark master (the submitter's, or embedded)")
    doctor.add_argument(
        "--driver-host", metavar="HOST", default="", help="address of this machine to try alone (all that may do)"
    )
    doctor.add_argument(
        "--driver-port",
        type=int,
        default=0,
        metavar="PORT",
        help="its port, and the next one is tried too (free ones)",
    )
    doctor.add_argument(
        "--run-dir", default="runs", metavar="DIR", help="directory or URI where runs will be kept (runs)"
    )


def _add_gpus(commands: "_Commands[argparse.ArgumentParser]") -> None:
    gpus = commands.add_parser("gpus", help="GPUs of hosts: which there are, who has them, freeing one")
    gpus.set_defaults(module="sparknet.cli.gpus")
    actions = gpus.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    actions.add_parser("list", help="the GPUs of this host, as its driver tells of them")
    status = actions.add_parser("status", help="who has which GPU, and since when")
    status.add_argument("--host", default="", metavar="HOST", help="of this host alone (all that are known)")
    release = actions.add_parser("release", help="free a GPU that a dead owner left taken")
    release.add_argument("gpu", metavar="HOST:GPU", help="as `sparknet gpus status` shows it")
    release.add_argument("--force", action="store_true", help="also from an owner that is alive")
    for action in (status, release):
        action.add_argument(
            "--redis",
            default="",
            metavar="URL",
            help="the server that hands GPUs out, redis://HOST:6379 (environment variable Redis; else lock files)",
        )


def _add_caffe(commands: "_Commands[argparse.ArgumentParser]") -> None:
    caffe = commands.add_parser("caffe", help="look at, upgrade and convert Caffe's nets and weights")
    caffe.set_defaults(module="sparknet.cli.caffe")
    actions = caffe.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)

    summary = actions.add_parser("summary", help="layers, shapes, parameters and arithmetic of a net")
    summary.add_argument(
        "file", type=Path, metavar="FILE", help="the net's prototxt, of any generation of the format"
    )
    _add_state(summary)

    upgrade = actions.add_parser(
        "upgrade",
        help="bring an old file to the form of Caffe 1.0",
        description="Bring a net's or a solver's prototxt, or a .caffemodel, to the form of Caffe 1.0.",
    )
    upgrade.add_argument("file", type=Path, metavar="FILE", help="prototxt of a net or solver, or .caffemodel")
    upgrade.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="file to write; not given: text is printed"
    )

    export = actions.add_parser(
        "export",
        help="write a net with its weights in another format",
        description="Write a net with its weights in the format that OUT ends in: .safetensors, .onnx, "
        ".caffemodel, .caffemodel.h5, or .prototxt for its modern description alone.",
    )
    export.add_argument("file", type=Path, metavar="MODEL", help="the net's prototxt")
    export.add_argument("--weights", type=Path, metavar="FILE", help="its weights, .caffemodel or .caffemodel.h5")
    export.add_argument("--to", type=Path, required=True, metavar="OUT", help="the file to write")
    _add_state(export)


def _add_plot(commands: "_Commands[argparse.ArgumentParser]") -> None:
    plot = commands.add_parser(
        "plot",
        help="draw accuracy over time and rounds from training logs",
        description="Draw accuracy over time and over rounds from training logs: the first SparkNet's, and ours.",
    )
    plot.set_defaults(module="sparknet.cli.plot")
    plot.add_argument("logs", type=Path, nargs="+", metavar="LOG", help="training_log_*.txt, or a run's directory")
    plot.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("accuracy.svg"),
        metavar="FILE",
        help="picture to write, .svg, .png or .pdf (accuracy.svg)",
    )


def _add_pack(commands: "_Commands[argparse.ArgumentParser]") -> None:
    pack = commands.add_parser(
        "pack",
        help="pack this Python environment for Spark's workers",
        description="Pack the virtual or conda environment that this command runs in, with sparknet in it, and "
        "print what spark-submit is to be told, so that workers need no installation.",
    )
    pack.set_defaults(module="sparknet.cli.pack")
    pack.add_argument("archive", type=Path, metavar="ARCHIVE", help="file to write, NAME.tar.gz")
    pack.add_argument(
        "--level",
        type=int,
        choices=range(10),
        default=4,
        metavar="N",
        help="of compression, 0 to 9: 0, none, is the quickest (4)",
    )
    pack.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files whose path in the environment matches, as in '*/site-packages/moto/*'; may be "
        "repeated",
    )


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _choices(*known: str) -> Callable[[str], list[str]]:
    """A type of names, with commas, each of which is known."""

    def names(text: str) -> list[str]:
        found = _names(text)
        strange = [name for name in found if name not in known]
        if strange:
            raise argparse.ArgumentTypeError(f"{strange[0]!r} is none of {', '.join(known)}")
        return found

    return names


def _add_state(parser: argparse.ArgumentParser) -> None:
    _add_net_state(parser.add_argument)
    parser.add_argument(
        "--shape",
        type=_shape,
        action="append",
        default=[],
        metavar="BLOB=N,C,H,W",
        help="shape of an input, batch first, where the file tells none or another; may be repeated",
    )
    _add_python_layers(parser)


def _add_net_state(add: Callable[..., object]) -> None:
    add("--phase", choices=("TRAIN", "TEST"), default="TEST", help="which of the net's phases (TEST)")
    add("--level", type=_whole, default=0, metavar="N", help="level that the layers' rules see (0)")
    add(
        "--stage",
        action="extend",
        type=_names,
        default=[],
        metavar="NAMES",
        help="stages that the rules see, with commas; may be repeated",
    )


def _add_data(commands: "_Commands[argparse.ArgumentParser]") -> None:
    data = commands.add_parser("data", help="prepare ImageNet's archives; write a source as LMDB or Parquet")
    actions = data.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    _add_imagenet(actions)
    _add_conversions(actions)


def _add_conversions(actions: "_Commands[argparse.ArgumentParser]") -> None:
    lmdb = actions.add_parser("to-lmdb", help="any source as LMDB databases that Caffe reads", description=_LMDB)
    lmdb.add_argument(
        "--partitions", type=_positive, default=1, metavar="N", help="databases, in PLACE/part-00000 and so on (1)"
    )
    parquet = actions.add_parser(
        "to-parquet",
        help="any source as Parquet, partitioned by key",
        description="Write the rows of a source as Parquet with the columns id, data and label, a directory key=N "
        "for each key: id counts the rows from 0, and key is id modulo N.",
    )
    parquet.add_argument("--keys", type=_positive, default=1, metavar="N", help="directories key=0 to key=N-1 (1)")
    for action in (lmdb, parquet):
        action.set_defaults(module="sparknet.cli.convert")
        action.add_argument("source", metavar="SOURCE", help=_SOURCE_HELP)
        action.add_argument("--to", required=True, metavar="PLACE", help="directory or URI; nothing must be there")
        action.add_argument(
            "--split", choices=("train", "test"), default="train", help="which rows of a standard directory (train)"
        )
        action.add_argument(
            "--encoded", action="store_true", help="write image files as they are; not given: their pixels"
        )
        action.add_argument("--resize", type=_size, metavar="HEIGHTxWIDTH", help="bring images to this size")
        action.add_argument("--s3-endpoint", metavar="URL", help="an S3-compatible server, if it is not AWS's own")
        action.add_argument("--workers", type=_positive, metavar="N", help="cores of the embedded session (all)")
        action.add_argument(
            "--master", metavar="URL", help="Spark master (cluster.master); default: the submitter's, or embedded"
        )
        action.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override one key of data or cluster, as in data.label=class; may be repeated",
        )


def _add_imagenet(actions: "_Commands[argparse.ArgumentParser]") -> None:
    imagenet = actions.add_parser(
        "imagenet",
        help="ImageNet's archives to shuffled tar chunks of images of one size",
        description="Read ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar as they were published, bring every "
        "image to one size, shuffle them all, and write tar chunks and label files. A command that was cut off at "
        "any moment goes on when it is given again. PLACE is a path or URI (s3://bucket/key, hdfs://host/path) "
        "that every worker reaches.",
        epilog="Spark sorts the images on the workers' disks, which takes about the size of the chunks: name a "
        "directory with so much room in SPARK_LOCAL_DIRS, or make --passes.",
    )
    imagenet.set_defaults(module="sparknet.cli.imagenet")
    source = imagenet.add_argument_group("what is read")
    source.add_argument("--train-tar", metavar="PLACE", help="the tar of one tar for each class")
    source.add_argument("--val-tar", metavar="PLACE", help="the flat tar")
    source.add_argument(
        "--labels", required=True, metavar="PLACE", help="directory of Caffe's train.txt and val.txt (ilsvrc12)"
    )
    result = imagenet.add_argument_group("what is made")
    result.add_argument("--to", required=True, metavar="PLACE", help="directory of the chunks and label files")
    result.add_argument("--width", type=_whole, default=256, metavar="N", help="of every image, in pixels (256)")
    result.add_argument("--height", type=_whole, default=256, metavar="N", help="of every image, in pixels (256)")
    result.add_argument("--train-chunks", type=_whole, metavar="N", help="tar files of training images (1000)")
    result.add_argument("--val-chunks", type=_whole, metavar="N", help="tar files of validation images (50)")
    result.add_argument("--seed", type=_whole, default=0, metavar="N", help="draws the order of the images (0)")
    result.add_argument("--quality", type=_whole, default=90, metavar="N", help="of the JPEG files, 1 to 100 (90)")
    result.add_argument(
        "--corrupt-share",
        type=_number,
        default=0.001,
        metavar="X",
        help="images that cannot be decoded are left out and named; a greater share is an error (0.001)",
    )
    result.add_argument(
        "--passes",
        type=_positive,
        default=1,
        metavar="N",
        help="read the archives N times and make a part of the chunks each time: takes less room on the workers' "
        "disks, and less is lost when it is cut off (1)",
    )
    place = imagenet.add_argument_group("where it runs")
    place.add_argument(
        "--s3-endpoint", default="", metavar="URL", help="an S3-compatible server, if it is not AWS's own"
    )
    place.add_argument("--workers", type=_positive, metavar="N", help="cores of the embedded session (all)")
    place.add_argument(
        "--master", metavar="URL", help="Spark master (cluster.master); default: the submitter's, or embedded"
    )
    place.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="cluster.KEY=VALUE",
        help="override one configuration key of the cluster; may be repeated",
    )


def _size(text: str) -> tuple[int, int]:
    height, times, width = text.partition("x")
    if not times or not height.isdecimal() or not width.isdecimal() or 0 in (int(height), int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give HEIGHTxWIDTH, as in 256x256")
    return int(height), int(width)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.rpartition("=")
    parts = [part.strip() for part in sizes.split(",")]
    if not equals or not name or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; the form is BLOB=N,C,H,W, as in data=1,3,32,32")
    return name, tuple(int(part) for part in parts)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="replicas, one Spark task each (run.workers)"
    )
    parser.add_argument(
        "--master", metavar="URL", help="Spark master (cluster.master); default: the submitter's, or embedded"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one configuration key, for example sync.local_steps=20; may be repeated",
    )
    _add_python_layers(parser)


def _add_python_layers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-python-layers",
        action="store_true",
        help="let layers of type Python run their code, with your rights; their modules are looked for in "
        "PYTHONPATH, here, and beside the net's file",
    )


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    run()
