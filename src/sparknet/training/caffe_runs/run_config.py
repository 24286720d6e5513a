"""From Caffe's files to a run: which settings a solver file and a net file come to.

docs/caffe.md has the table of it.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.prototxt import format_text, parse_text
from sparknet.caffe.prototxt.parse import names_file
from sparknet.caffe.schema import TEST, TRAIN, NetParameter, SolverParameter
from sparknet.caffe.solver.nets import NetPlan, find_file, plan_test_nets, plan_training_net
from sparknet.caffe.solver.settings import SolverSettings
from sparknet.config import Data, Net, RunConfig
from sparknet.config.files import config_from
from sparknet.errors import ConfigError, NetError
from sparknet.training.caffe_runs.data_layers import NetSources, data_source
from sparknet.training.objectives.find_net import find_net
from sparknet.training.objectives.input_binding import batch_in_file
from sparknet.training.objectives.optimiser import read_solver, solver_settings

__all__ = [
    "CaffeFiles",
    "check_net",
    "rounding_notes",
    "scoring_config",
    "self_contained",
    "train_config",
]

_TRAIN_NETS = ("net", "net_param", "train_net", "train_net_param")
_NETS = (*_TRAIN_NETS, "test_net", "test_net_param")
_PREFIX = re.compile(r"""\bsnapshot_prefix\s*:\s*("[^"\n]*"|'[^'\n]*')""")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaffeFiles:
    """What a Caffe user names on the command line."""

    solver: Path
    net: Path | None = None
    """In place of the nets that the solver names."""
    weights: str = ""
    """Weight files to start from, separated by commas; not given: those that the solver names."""
    snapshot: str = ""
    """A solver state to go on from."""


def train_config(files: CaffeFiles, source: str | None, overrides: Sequence[str]) -> RunConfig:
    """The run that a solver file stands for; its paths are still paths, so that errors name the files.

    Args:
        files: solver, net and what to start from.
        source: `KIND:PATH`, or `digits`; None takes the databases that the net's data layers name.
        overrides: `section.key=value` settings, which win.

    Raises:
        ConfigError: a setting of the solver, the source or an override is at fault.
        NetError: a file is missing, or is no net or solver.
    """
    message, name = read_solver(str(files.solver))
    if files.net is not None:
        message = _with_net(message, files.net)
    if not any(message.HasField(key) for key in _TRAIN_NETS):
        raise ConfigError(f"{name}: it names no net; set net to the net's prototxt, or give --net")
    settings = SolverSettings.from_message(message, name)
    if settings.max_iter is None:
        raise ConfigError(f"{name}: max_iter is missing; the run ends there: set max_iter")
    if settings.max_iter == 0:
        raise ConfigError(
            f"{name}: max_iter is 0; the run ends there and must have an iteration: set max_iter to at least 1"
        )
    if len(settings.test_iter) > 1:
        raise ConfigError(
            f"{name}: test_iter is given {len(settings.test_iter)} times; one net is tested here: keep one of them"
        )
    net = _net_of(message, name, files.solver.parent)
    spec = NetSpec.from_prototxt(net)
    weights = files.weights or ",".join(_beside(settings.weights, files.solver.parent))
    tables: dict[str, Any] = {
        "run": {"name": _run_name(spec), "seed": max(0, settings.random_seed)},
        "data": data_source(source, overrides, net=NetSources(spec=spec, directory=files.solver.parent)),
        "net": {"prototxt": net, "weights": "" if files.snapshot else weights},
        "solver": {
            "prototxt": str(files.solver),
            "snapshot": files.snapshot,
            "batch_size": batch_in_file(spec.select("TRAIN")) or 64,
        },
    }
    # Once to learn the length of a round, which iterations are counted in.
    tables["run"] |= _counted(settings, overrides, local_steps=1)
    local_steps = config_from(tables, overrides).sync.local_steps
    tables["run"] |= _counted(settings, overrides, local_steps=local_steps)
    return config_from(tables, overrides)


def scoring_config(model: Path, source: str | None, overrides: Sequence[str]) -> RunConfig:
    """What testing a net file on a source comes to: of the configuration only net, data and cluster matter.

    Raises:
        ConfigError: the source or an override is at fault.
        NetError: the file is missing or no net.
    """
    net = NetSources(spec=NetSpec.from_prototxt(str(model)), directory=model.parent)
    data = data_source(source, overrides, net=net, testing=True)
    tables = {"run": {"rounds": 1}, "net": {"prototxt": str(model)}, "data": data}
    return config_from(tables, overrides)


def check_net(net: Net) -> None:
    """Find what is wrong with a net's name or file, without building it.

    Raises:
        NetError: there is no such net, or the file is none.
    """
    if net.name:
        find_net(net.name)
        return
    spec = NetSpec.from_prototxt(net.prototxt)
    spec.select("TRAIN")
    spec.select("TEST")


def self_contained(config: RunConfig) -> RunConfig:
    """The same configuration with the text of Caffe's files in place of their paths, and other paths absolute.

    So the run can be resumed from any directory.

    Raises:
        NetError: a file is missing, or is no solver.
    """
    net, solver, data = config.net, config.solver, config.data
    if net.prototxt and names_file(net.prototxt):
        net = replace(net, prototxt=_as_text(Path(net.prototxt)))
    if solver.prototxt and names_file(solver.prototxt):
        solver = replace(solver, prototxt=_as_text(Path(solver.prototxt)))
    if solver.prototxt:
        solver = replace(solver, prototxt=_with_absolute_prefix(solver.prototxt))
    data = _data_from_anywhere(data, caffe=bool(net.prototxt))
    weights = ",".join(str(Path(name.strip()).absolute()) for name in net.weights.split(",") if name.strip())
    snapshot = str(Path(solver.snapshot).absolute()) if solver.snapshot else ""
    return replace(config, data=data, net=replace(net, weights=weights), solver=replace(solver, snapshot=snapshot))


def rounding_notes(config: RunConfig, rounds: int) -> list[str]:
    """Where whole rounds move what the solver file counts in iterations, one line each."""
    if not config.solver.prototxt:
        return []
    settings = solver_settings(config.solver.prototxt)
    local_steps, run = config.sync.local_steps, config.run
    moved = [
        ("max_iter", settings.max_iter or 0, rounds * local_steps, "the run ends at iteration"),
        ("test_interval", settings.test_interval, run.eval_every * local_steps, "tests come every"),
        ("snapshot", settings.snapshot, run.checkpoint_every * local_steps, "snapshots come every"),
    ]
    return [
        f"{key} is {asked} and a round has {local_steps} iterations: {what} {comes}"
        for key, asked, comes, what in moved
        if asked and comes and asked != comes
    ]


def _counted(settings: SolverSettings, overrides: Sequence[str], *, local_steps: int) -> Mapping[str, Any]:
    """What a solver counts in iterations, in rounds."""

    def rounds(iterations: int) -> int:
        return max(1, round(iterations / local_steps)) if iterations else 0

    tests = bool(settings.test_iter and settings.test_iter[0])
    counted: dict[str, Any] = {
        "eval_every": rounds(settings.test_interval) if tests else 0,
        "eval_first": tests and settings.test_initialization,
        "checkpoint_every": rounds(settings.snapshot),
    }
    if tests:
        counted["eval_batches"] = settings.test_iter[0]
    if not any(setting.strip().startswith("run.epochs") for setting in overrides):
        counted["rounds"] = math.ceil((settings.max_iter or 0) / local_steps)
    return counted


def _with_net(message: SolverParameter, net: Path) -> SolverParameter:
    changed = SolverParameter()
    changed.CopyFrom(message)
    for name in _NETS:
        changed.ClearField(name)  # pyright: ignore[reportArgumentType]
    changed.net = str(net)
    return changed


def _net_of(message: SolverParameter, source: str, directory: Path) -> str:
    """The file, or the text of a file, with the phases TRAIN and TEST that the solver asks for."""
    train = plan_training_net(message, source, directory)
    tests = plan_test_nets(message, source, directory)
    test = tests[0] if tests else replace(train, state=_phase_alone(train))
    plain = not any(plan.state.level or plan.state.stage for plan in (train, test))
    if plain and train.spec.source == test.spec.source and Path(train.spec.source).is_file():
        return train.spec.source
    merged = NetParameter(name=train.spec.parameters.name)
    for plan, phase in ((train, TRAIN), (test, TEST)):
        state = plan.state
        chosen = plan.spec.select(
            "TRAIN" if phase == TRAIN else "TEST", level=state.level, stages=tuple(state.stage)
        )
        for layer in chosen.parameters.layer:
            del layer.include[:], layer.exclude[:]
            layer.include.add(phase=phase)
            merged.layer.append(layer)
    return NetSpec.from_message(merged, source).to_prototxt()


def _beside(weights: Sequence[str], directory: Path) -> list[str]:
    """Files that a solver names, each string perhaps several, found as its nets are."""
    names = (name.strip() for several in weights for name in several.split(","))
    return [find_file(name, directory) for name in names if name]


def _phase_alone(plan: NetPlan) -> Any:
    """The state of the tested net where the solver names none: the training net's, in phase TEST."""
    state = type(plan.state)()
    state.CopyFrom(plan.state)
    state.phase = TEST
    return state


def _run_name(spec: NetSpec) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in spec.parameters.name)
    return kept.strip("-_.").lower() or "caffe"


def _data_from_anywhere(data: Data, *, caffe: bool) -> Data:
    return replace(
        data,
        path=_absolute(data.path),
        validation_path=_absolute(data.validation_path),
        labels=_absolute(data.labels),
        validation_labels=_absolute(data.validation_labels),
        mean_file=_absolute(data.mean_file),
        channel_order=data.channel_order or ("bgr" if caffe else None),
    )


def _absolute(path: str) -> str:
    """A local path or glob seen from the root; a URI, a home directory and an empty path stay as they are."""
    if not path or "://" in path or path.startswith(("file:", "~")):
        return path
    return os.path.join(Path.cwd(), path)  # noqa: PTH118 - a slash at the end, which tells a directory, is kept


def _with_absolute_prefix(text: str) -> str:
    """A solver file's text with an absolute snapshot_prefix; the rest stays as it was written, where it can."""
    message = parse_text(text, SolverParameter).message
    prefix = message.snapshot_prefix
    if not prefix or Path(prefix).is_absolute():
        return text
    message.snapshot_prefix = os.path.join(Path.cwd(), prefix)  # noqa: PTH118 - as above
    line = format_text(SolverParameter(snapshot_prefix=message.snapshot_prefix)).strip()
    changed = _PREFIX.sub(lambda _: line, text)
    # A string may be written in several pieces, or over several lines.
    return changed if parse_text(changed, SolverParameter).message == message else format_text(message)


def _as_text(path: Path) -> str:
    """A file's text, with a line break in it, which tells it from a path."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NetError(f"{path} cannot be read: {error}; give the path of a prototxt file") from error
    return text if text.endswith("\n") else text + "\n"
