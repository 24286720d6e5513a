#!/usr/bin/env python3
"""Which of a directory's Caffe nets can be built here, and why the others cannot.

Every `.prototxt` below the directory is read as a net or a solver. Each net is built in the states that the solvers
found there ask for, else in those that its own layers tell apart (TRAIN, TEST, their stages; a net for deployment
as it is), without weights, data or memory. Shapes that data layers leave to their rows are tried from --rows, in
order, until one makes a net of it.

A refusal that has no kind is "unexplained"; if there is one, the exit code is 1.
"""

import argparse
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path

import torch

from sparknet.caffe.description.spec import NetSpec, PhaseName
from sparknet.caffe.description.upgrade import upgrade_solver
from sparknet.caffe.layers import INPUT_LAYERS, LAYERS, Shape, input_blobs
from sparknet.caffe.module.build import build
from sparknet.caffe.prototxt import read_text
from sparknet.caffe.prototxt.fork_layers import BVLC_TYPES
from sparknet.caffe.schema import SolverParameter
from sparknet.caffe.solver.settings import SolverSettings
from sparknet.errors import ConfigError, NetError

State = tuple[PhaseName, tuple[str, ...]]
"""A phase and its stages."""

UNEXPLAINED = "unexplained"
SOLVER = "no net in the file (solver)"
OTHER = "no net in the file (neither net nor solver)"

_ROWS = "3x256x256 1x28x28 2x28x28 3x32x32 4"
_OF_A_NET = re.compile(r"^[ \t]*(?:layers?|input|input_shape|input_dim)\b", re.MULTILINE)
_FIELD_OF_A_SOLVER = re.compile(
    r"^[ \t]*(?:net|train_net|test_net|train_net_param|test_net_param|net_param|base_lr|lr_policy|max_iter)\b",
    re.MULTILINE,
)
_KINDS = (
    (r"(?:type '?(\w+)'? is|\((\w+)\),) no layer of BVLC Caffe but of ([^:;]+)", "fork's layer: {0}{1} ({2})"),
    (r"type '?(\w+)'? is no layer of BVLC Caffe, nor", "layer of an unknown fork: {0}"),
    (r"has no field '(\w+)' in Caffe 1\.0; it is of ([^:]+)", "fork's field: {0} ({1})"),
    (r"has no field '(\w+)' in Caffe 1\.0", "fork's field: {0}"),
    (r"layers that are code", "Python layer (not allowed)"),
    (r"^[^\n]*?:\d+:\d+: (\w+) has no field '(\w+)'", "unknown field: {0}.{1}"),
    (r"^[^\n]*?:\d+:\d+: ", "syntax"),
    (r"which no layer before it makes|which is made only by", "part of a net: a bottom that no layer makes"),
)
"""Patterns of messages and the kinds that they are; the first that fits."""
_UNKNOWN_TYPE = re.compile(r"layer '[^']*' \((\w+)\)")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one file."""

    path: str
    reason: str = ""
    """The kind of its refusal, or that it holds no net; empty: all its nets are built."""
    message: str = ""
    """What the refusal said."""

    @property
    def refused(self) -> bool:
        """Whether it holds a net that is not built."""
        return bool(self.reason) and self.reason not in (SOLVER, OTHER)


class Corpus:
    """The files of a directory.

    Args:
        directory: looked through, below it too.
        rows: shapes of rows that are tried where the files do not tell them.
        shapes: by name shapes of inputs, with the batch axis.
    """

    def __init__(self, directory: Path, *, rows: Sequence[Shape], shapes: Mapping[str, Shape]) -> None:
        self._directory = directory
        self._rows = rows
        self._shapes = shapes
        self._nets: dict[Path, list[NetSpec]] = {}
        self._outcomes: dict[Path, Outcome] = {}
        self._asked: dict[Path, set[State]] = {}
        """By net the states that solvers want it in."""

    def judge(self) -> list[Outcome]:
        """What becomes of each file, by name."""
        paths = sorted(self._directory.rglob("*.prototxt"))
        for path in paths:
            try:
                self._read(path, paths)
            except (NetError, ConfigError) as error:
                self._outcomes[path] = _refusal(self._name(path), error)
        for path, nets in self._nets.items():
            try:
                for spec in nets:
                    self._build(spec, self._asked.get(path) or _states(spec))
            except NetError as error:
                self._outcomes[path] = _refusal(self._name(path), error)
        return [self._outcomes[path] for path in paths]

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._directory))

    def _read(self, path: Path, paths: Sequence[Path]) -> None:
        """Take the nets of a file: the one that it is, or those within a solver."""
        text, nets, reason = path.read_text(encoding="utf-8", errors="replace"), list[NetSpec](), ""
        if _FIELD_OF_A_SOLVER.search(text):
            solver = upgrade_solver(read_text(path, SolverParameter).message)
            SolverSettings.from_message(solver, str(path), own_nets=False)
            own = (solver.net_param, solver.train_net_param, *solver.test_net_param)
            nets = [NetSpec.from_message(net, f"{path}: own net") for net in own if net.ListFields()]
            reason = "" if nets else SOLVER
            if solver.net and (named := _nearest(solver.net, path, paths)):
                stages = [state.stage for state in solver.test_state] or [()] * bool(solver.test_iter)
                tests: list[State] = [("TEST", tuple(each)) for each in stages]
                self._asked.setdefault(named, set()).update([("TRAIN", tuple(solver.train_state.stage)), *tests])
        elif _OF_A_NET.search(text):
            nets = [NetSpec.from_prototxt(path)]
        else:
            reason = OTHER
        self._nets[path] = nets
        self._outcomes[path] = Outcome(path=self._name(path), reason=reason)

    def _build(self, spec: NetSpec, states: Iterable[State]) -> None:
        for phase, stages in sorted(states):
            state = spec.select(phase, stages=stages)
            faults = list[NetError]()
            for given in self._given(state):
                try:
                    with torch.device("meta"):  # no memory, and nothing is drawn
                        build(state, given)
                    faults = []
                    break
                except NetError as error:
                    faults.append(error)
            if faults:
                raise faults[0]

    def _given(self, state: NetSpec) -> list[dict[str, Shape]]:
        """The shapes that are tried."""
        every = [_shapes(state, row, self._shapes) for row in self._rows]
        return every if every[0] else every[:1]


def _nearest(name: str, solver: Path, paths: Sequence[Path]) -> Path | None:
    """The file that a solver names by a path of its author's: whose end is most alike, or the one beside it."""

    def alike(path: Path) -> tuple[int, bool]:
        ends = zip(reversed(path.parts), reversed(Path(name).parts), strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], ends))), path.parent == solver.parent

    best = max(paths, key=alike)
    return best if alike(best)[0] else None


def _states(spec: NetSpec) -> list[State]:
    """The states that a net's own rules tell apart and in which something makes its first blob."""
    rules = [rule for layer in spec.parameters.layer for rule in chain(layer.include, layer.exclude)]
    stages = sorted({stage for rule in rules for stage in rule.stage})
    sources = [layer for layer in spec.parameters.layer if not layer.bottom]
    if not rules and all(layer.type == "Input" for layer in sources):
        return [("TEST", ())]
    states: list[State] = [
        (phase, ((stage,) if stage else ())) for phase in ("TRAIN", "TEST") for stage in ("", *stages)
    ]
    found: list[State] = [
        (phase, stage)
        for phase, stage in states
        if any(not layer.bottom for layer in spec.select(phase, stages=stage).parameters.layer)
    ]
    return found or states[:1]


def _shapes(state: NetSpec, row: Shape, given: Mapping[str, Shape]) -> dict[str, Shape]:
    """By blob the shapes that the file leaves open, of rows of `row`, and those that were given."""
    shapes: dict[str, Shape] = {}
    for layer in state.parameters.layer:
        for blob in input_blobs(layer) if layer.type in INPUT_LAYERS else ():
            side = blob.transform.crop_size
            batch = max(1, layer.data_param.batch_size, layer.hdf5_data_param.batch_size)
            batch = max(batch, layer.image_data_param.batch_size)
            if blob.name in given:
                shapes[blob.name] = given[blob.name]
            elif blob.shape is None:
                cut = (row[0], side, side) if side else row
                shapes[blob.name] = (batch,) if blob.place else (batch, *cut)
    return shapes


def _refusal(name: str, error: Exception) -> Outcome:
    message = " ".join(str(error).split())
    return Outcome(path=name, reason=_kind(message), message=message)


def _kind(message: str) -> str:
    if "types that are not supported" in message:
        types = set(_UNKNOWN_TYPE.findall(message.partition("supported are")[0]))
        missing = types & BVLC_TYPES - {*LAYERS, *INPUT_LAYERS}
        if missing:
            return UNEXPLAINED
        if "but of" not in message:
            return f"layer of an unknown fork: {min(types)}"
    for pattern, kind in _KINDS:
        if found := re.search(pattern, message):
            return kind.format(*(part or "" for part in found.groups()))
    return UNEXPLAINED


def table(outcomes: Sequence[Outcome]) -> str:
    """What became of all files: kinds with counts, each file that was refused, and the share."""
    counts = Counter(outcome.reason for outcome in outcomes if outcome.reason)
    refused = [outcome for outcome in outcomes if outcome.refused]
    built = sum(not outcome.reason for outcome in outcomes)
    nets = built + len(refused)
    lines = [f"{count:5}  {kind}" for kind, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))]
    lines += [f"{outcome.path}: {outcome.reason}\n    {outcome.message}" for outcome in refused]
    share = f", {100 * built / nets:.1f} %" if nets else ""
    lines.append(f"{built} of {nets} files with nets are built{share}; {counts[UNEXPLAINED]} unexplained")
    return "\n".join(lines)


def _row(text: str) -> Shape:
    try:
        sizes = tuple(int(size) for size in text.split("x"))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write its sizes as in 3x227x227")
    return sizes


def _named(text: str) -> tuple[str, Shape]:
    name, _, sizes = text.partition("=")
    return name, _row(sizes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge a directory's files and print the table; 1 where a refusal is unexplained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="looked through for .prototxt files, below it too")
    parser.add_argument(
        "--rows",
        type=_row,
        nargs="+",
        default=[_row(text) for text in _ROWS.split()],
        metavar="CxHxW",
        help=f"shapes of rows where data layers do not tell them ({_ROWS}); crop_size goes before",
    )
    parser.add_argument(
        "--shape",
        type=_named,
        action="append",
        default=[],
        metavar="BLOB=NxCxHxW",
        help="shape of an input of this name, with the batch axis; repeatable",
    )
    given = parser.parse_args(arguments)
    if not given.directory.is_dir():
        parser.error(f"{given.directory} is no directory; give one with .prototxt files")
    # What nets are warned of is not why they are refused.
    logging.getLogger("sparknet").setLevel(logging.ERROR)
    outcomes = Corpus(given.directory, rows=given.rows, shapes=dict(given.shape)).judge()
    print(table(outcomes))
    return int(any(outcome.reason == UNEXPLAINED for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
