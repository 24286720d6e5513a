"""`sparknet`: parses first, imports torch and pyspark only for the command that needs them."""

import argparse
import importlib
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from sparknet import __version__
from sparknet.errors import SparkNetError

__all__ = ["main", "run"]

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells know it."""
BROKEN_PIPE = 141
"""Exit code when nobody reads the output any more, as shells know it."""
_SOURCE_HELP = "cifar10:PATH, mnist:PATH, parquet:PATH or digits"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 for a failure, 2 for wrong usage, 130 when interrupted."""
    parsed = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    # py4j logs an interrupt that cuts into a call as if it were an error; we say what there is to say.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        # The command's module is named, not imported, so that --help and wrong usage answer at once.
        return importlib.import_module(parsed.module).run(parsed)
    except SparkNetError as error:
        print(f"sparknet: error: {error}", file=sys.stderr)
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
    _add_doctor(commands)
    _add_caffe(commands)
    return parser


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
    caffe.add_argument("--data", metavar="SOURCE", help=_SOURCE_HELP)
    caffe.add_argument("--weights", default="", metavar="FILES", help="caffemodel files to start from, with commas")
    caffe.add_argument("--snapshot", default="", metavar="FILE", help="solverstate to go on from")
    train.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="where everything about the run goes (runs/<name>-<time>)"
    )
    _add_overrides(train)


def _add_resume(commands: "_Commands[argparse.ArgumentParser]") -> None:
    resume = commands.add_parser("resume", help="go on with a run from its last good checkpoint")
    resume.set_defaults(module="sparknet.cli.resume")
    resume.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the run's directory")
    _add_overrides(resume)


def _add_test(commands: "_Commands[argparse.ArgumentParser]") -> None:
    test = commands.add_parser("test", help="measure a finished run's model, or a Caffe model, on rows")
    test.set_defaults(module="sparknet.cli.test")
    test.add_argument("run_dir", type=Path, metavar="RUN_DIR", nargs="?", help="the run's directory")
    test.add_argument(
        "--data",
        metavar="PATH",
        help="rows to test on, in the format of the training data; not given: validation rows",
    )
    caffe = test.add_argument_group("with Caffe's files, instead of RUN_DIR", f"--data SOURCE is {_SOURCE_HELP}")
    caffe.add_argument("--model", type=Path, metavar="FILE", help="net prototxt")
    caffe.add_argument("--weights", metavar="FILES", help="caffemodel files, with commas")
    caffe.add_argument(
        "--iterations", type=_positive, metavar="N", help="test N batches of the net's batch size; all rows"
    )
    _add_overrides(test)


def _add_doctor(commands: "_Commands[argparse.ArgumentParser]") -> None:
    doctor = commands.add_parser("doctor", help="check Java, Spark, torch, ports, disk and routes between workers")
    doctor.set_defaults(module="sparknet.cli.doctor")
    doctor.add_argument(
        "--workers", type=_positive, default=2, metavar="N", help="workers to try routes between (2)"
    )
    doctor.add_argument("--master", metavar="URL", default="", help="Spark master (embedded local session)")
    doctor.add_argument(
        "--run-dir", type=Path, default=Path("runs"), metavar="DIR", help="where runs will be kept (runs)"
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


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--phase", choices=("TRAIN", "TEST"), default="TEST", help="which of the net's phases (TEST)"
    )
    parser.add_argument("--level", type=int, default=0, metavar="N", help="level that the layers' rules see (0)")
    parser.add_argument(
        "--stage", action="append", default=[], metavar="NAME", help="stage that the rules see; may be repeated"
    )
    parser.add_argument(
        "--shape",
        type=_shape,
        action="append",
        default=[],
        metavar="BLOB=N,C,H,W",
        help="shape of an input, batch first, where the file tells none or another; may be repeated",
    )


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
    parser.add_argument("--master", metavar="URL", help="Spark master (cluster.master); default: embedded")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one configuration key, for example sync.local_steps=20; may be repeated",
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    run()
