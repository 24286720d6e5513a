"""`sparknet caffe`: what a Caffe net comes to, its files in the modern form, and the net in other formats."""

import argparse
import re
import sys
from pathlib import Path

from google.protobuf.message import Message

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.description.upgrade import upgrade_net, upgrade_solver
from sparknet.caffe.export import FORMATS, export
from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.caffe.net_files import written_whole
from sparknet.caffe.prototxt import format_text, read_text
from sparknet.caffe.schema import NetParameter, SolverParameter
from sparknet.caffe.summary import summarise
from sparknet.caffe.weights.caffemodel import is_text, upgrade_binary
from sparknet.errors import NetError, UsageError
from sparknet.training.caffe_runs.named_shapes import named_shapes

__all__ = ["run"]

_OF_A_NET = re.compile(r"^[ \t]*(?:layers?|input|input_shape|input_dim)\b", re.MULTILINE)
"""A line that a net has, and a solver hardly."""


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for."""
    actions = {"summary": _summary, "upgrade": _upgrade, "export": _export}
    actions[arguments.action](arguments)
    return 0


def _summary(arguments: argparse.Namespace) -> None:
    _print(summarise(_net(arguments)).table() + "\n")


def _upgrade(arguments: argparse.Namespace) -> None:
    source: Path = arguments.file
    target: Path | None = arguments.output
    if not _holds_text(source):
        if target is None:
            raise UsageError(f"{source} is binary; give the file to write its modern form to: -o OUT.caffemodel")
        upgrade_binary(source, target)
    else:
        text = format_text(_modern(source))
        if target is None:
            return _print(text)
        # OUT may be FILE itself.
        with written_whole(target) as draft:
            draft.write_text(text, encoding="utf-8")
    print(f"wrote {target}")


def _export(arguments: argparse.Namespace) -> None:
    target: Path = arguments.to
    suffix = next((suffix for suffix in FORMATS if target.name.endswith(suffix)), None)
    if suffix is None:
        raise UsageError(f"--to {target} tells no format; its name must end in one of {', '.join(FORMATS)}")
    if arguments.weights is None and suffix != ".prototxt":
        raise UsageError(f"--weights is missing: a {suffix} file holds them; give the net's .caffemodel")
    net = _net(arguments)
    if arguments.weights is not None:
        loaded = net.load_weights(arguments.weights)
        if loaded.missing:
            raise NetError(
                f"{arguments.weights} has no weights for {len(loaded.missing)} layers of {arguments.file}: "
                f"{', '.join(loaded.missing)}; give the file that belongs to this net"
            )
    export(net, target)
    print(f"wrote {target}, {target.stat().st_size:,} bytes")


def _net(arguments: argparse.Namespace) -> CaffeNet:
    spec = NetSpec.from_prototxt(arguments.file)
    if arguments.allow_python_layers:
        spec = spec.allowing_python_layers()
    # What is typed wins over what the rows say.
    state = spec.select(arguments.phase, level=arguments.level, stages=arguments.stage)
    shapes = named_shapes(state, arguments.phase, arguments.file.parent, given=dict(arguments.shape))
    return CaffeNet(spec, arguments.phase, level=arguments.level, stages=arguments.stage, input_shapes=shapes)


def _holds_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_text(file.read(4096))
    except OSError as error:
        raise NetError(f"{path} cannot be read: {error.strerror or error}; give a file of Caffe's") from error


def _modern(path: Path) -> Message:
    """The net or solver in a text file, told apart by which of the two it is."""
    try:
        net = read_text(path, NetParameter).message
    except NetError as error:
        try:
            # A solver's fields are unknown in a net: what does not parse as the one may be the other.
            solver = upgrade_solver(read_text(path, SolverParameter).message)
        except NetError:
            if _OF_A_NET.search(path.read_text(encoding="utf-8", errors="replace")):
                raise error from None  # what is wrong with it as a net
            raise
        # Nets within a solver are of its own generation.
        for inner in (solver.net_param, solver.train_net_param, *solver.test_net_param):
            if inner.ListFields():
                inner.CopyFrom(upgrade_net(inner).net)
        return solver
    return upgrade_net(net).net


def _print(text: str) -> None:
    # as bytes: a prototxt is UTF-8 whatever the terminal's encoding is, for it may go into a file
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
