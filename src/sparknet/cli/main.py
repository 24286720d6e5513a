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
    return parser


_Commands = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]


def _add_train(commands: "_Commands[argparse.ArgumentParser]") -> None:
    train = commands.add_parser("train", help="train a net as a configuration file says")
    train.set_defaults(module="sparknet.cli.train")
    train.add_argument("config", type=Path, metavar="CONFIG", help="TOML file, for example configs/digits.toml")
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
    test = commands.add_parser("test", help="measure a finished run's model on validation or other rows")
    test.set_defaults(module="sparknet.cli.test")
    test.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the run's directory")
    test.add_argument(
        "--data",
        metavar="PATH",
        help="rows to test on, in the format of the training data; not given: validation rows",
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
