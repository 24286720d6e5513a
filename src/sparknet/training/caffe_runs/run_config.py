"""From Caffe's files to a run: which settings a solver file and a net file come to.

docs/caffe.md has the table of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.schema import TEST, TRAIN, LayerParameter, NetParameter, NetState, NetStateRule, SolverParameter
from sparknet.caffe.solver.named_files import find_file, listed_files
from sparknet.caffe.solver.nets import NamedNets, NetPlan
from sparknet.caffe.solver.settings import SolverSettings
from sparknet.config.files import config_from
from sparknet.errors import ConfigError
from sparknet.training.caffe_runs.data_layers import NetSources, data_source
from sparknet.training.caffe_runs.open_run import (
    NetFile,
    RunStart,
    directories_of,
    open_run,
    read_net,
    read_solver,
)
from sparknet.training.objectives.input_binding import batch_in_file

__all__ = ["CaffeFiles", "scored_run", "solver_run"]

_TRAIN_NETS = ("net", "net_param", "train_net", "train_net_param")
_NETS = (*_TRAIN_NETS, "test_net", "test_net_param")


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


def solver_run(files: CaffeFiles, source: str | None, overrides: Sequence[str]) -> RunStart:
    """The run that a solver file stands for.

    Args:
        files: solver, net and what to start from.
        source: `KIND:PATH`, or `digits`; None takes the databases that the net's data layers name.
        overrides: `section.key=value` settings, which win.

    Raises:
        ConfigError: a setting of the solver, the source or an override is at fault.
        NetError: a file is missing, or is no net or solver.
    """
    solver = read_solver(str(files.solver))
    message, name = solver.message, solver.source
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
    net, further = _net_of(message, name, files.solver.parent)
    spec = net.spec
    sources = NetSources(
        spec=spec,
        directory=files.solver.parent,
        tests={test: batches or None for test, batches in zip(further, settings.test_iter[1:], strict=True)},
        # Caffe builds no test net where the solver asks for no test.
        tested=bool(settings.test_iter),
    )
    weights = files.weights or ",".join(listed_files(settings.weights, files.solver.parent))
    tables: dict[str, Any] = {
        # Caffe's -1 asks for a seed from the clock; a run here always has one, so that it can be repeated.
        "run": {"name": _run_name(spec), "seed": max(0, settings.random_seed)},
        "data": data_source(source, overrides, net=sources),
        # A snapshot brings weights of its own.
        "net": {"prototxt": net.text, "weights": "" if files.snapshot else weights},
        "solver": {
            "prototxt": str(files.solver),
            "snapshot": files.snapshot,
            "batch_size": batch_in_file(spec.select("TRAIN")) or 64,
        },
    }
    tables["run"] |= _counted(settings, overrides)
    config = config_from(tables, overrides)
    # An override may name other files than those that were read here.
    return open_run(
        config,
        net=net if config.net.prototxt == net.text else None,
        solver=solver if config.solver.prototxt == str(files.solver) else None,
    )


def scored_run(
    model: Path,
    source: str | None,
    overrides: Sequence[str],
    *,
    state: NetState | None = None,
    batches: int | None = None,
) -> RunStart:
    """What testing a net file on a source comes to: of the configuration only net, data and cluster matter.

    Args:
        model: the net's file.
        source: as for `solver_run`.
        overrides: as for `solver_run`.
        state: which of the net's states is tested; None: phase TEST, without a level or stages.
        batches: how many are tested; None: all rows.

    Raises:
        ConfigError: the source or an override is at fault.
        NetError: the file is missing or no net.
    """
    net = read_net(str(model))
    named = net.spec
    if state is not None:
        plan = NetPlan(spec=net.spec, state=state)
        # Sources are asked for what phase TEST names, whichever phase it is that is tested.
        net, named = _one_state(plan, state.phase), _one_state(plan, TEST).spec
    data = data_source(source, overrides, net=NetSources(spec=named, directory=model.parent), testing=True)
    run = {"rounds": 1} | ({"eval_batches": batches} if batches else {})
    tables = {"run": run, "net": {"prototxt": net.text}, "data": data}
    config = config_from(tables, overrides)
    return open_run(config, net=net if config.net.prototxt == net.text else None)


def _counted(settings: SolverSettings, overrides: Sequence[str]) -> Mapping[str, Any]:
    """What a solver counts in iterations: exactly so, unless a setting counts it in rounds or epochs."""
    typed = {setting.partition("=")[0].strip() for setting in overrides}
    tests = bool(settings.test_iter and settings.test_iter[0])
    counted: dict[str, Any] = {"eval_first": tests and settings.test_initialization}
    if tests:
        counted["eval_batches"] = settings.test_iter[0]
    for every, iterations, asked in (
        ("eval_every", "eval_iterations", settings.test_interval if tests else 0),
        ("checkpoint_every", "checkpoint_iterations", settings.snapshot),
    ):
        if f"run.{every}" not in typed:
            counted |= {iterations: asked} if asked else {every: 0}
    if not typed & {"run.rounds", "run.epochs"}:
        counted["iterations"] = settings.max_iter
    return counted


def _with_net(message: SolverParameter, net: Path) -> SolverParameter:
    # A copy: the message is also what the solver's file said.
    changed = SolverParameter()
    changed.CopyFrom(message)
    for name in _NETS:
        changed.ClearField(name)  # pyright: ignore[reportArgumentType]
    changed.net = str(net)
    return changed


def _net_of(message: SolverParameter, source: str, directory: Path) -> tuple[NetFile, list[str]]:
    """The net with the phases TRAIN and TEST that the solver asks for: its file, or one made of several.

    Returns:
        The net, and the names of its tests but the first: of each the layers are those of phase TEST in the stage
        of that name.
    """
    files = dict[str, NetFile]()

    def read(path: Path) -> NetSpec:
        files[str(path)] = read_net(str(path), directory)
        return files[str(path)].spec

    nets = NamedNets(message, source, directory, read=read)
    train, tests = nets.plan_training(), nets.plan_tests()
    tests = tests or [replace(train, state=_phase_alone(train))]
    directories = directories_of(train.spec.source, *(test.spec.source for test in tests), source)
    plain = len(tests) == 1 and not any(plan.state.level or plan.state.stage for plan in (train, *tests))
    # The file as it was written, with its comments and rules, wherever that says all.
    if plain and train.spec is tests[0].spec and train.spec.source in files:
        return replace(files[train.spec.source], directories=directories), []
    # Whatever the file says beside its layers, force_backward say, is of the net that is made too.
    merged = NetParameter()
    merged.CopyFrom(train.spec.parameters)
    del merged.layer[:]
    # Whoever reads the file later knows a phase, and no levels and stages but those of the further tests.
    names = _names_of(tests[1:])
    merged.layer.extend(_layers_of(train, NetStateRule(phase=TRAIN)))
    merged.layer.extend(_layers_of(tests[0], NetStateRule(phase=TEST, not_stage=names)))
    for name, plan in zip(names, tests[1:], strict=True):
        merged.layer.extend(_layers_of(plan, NetStateRule(phase=TEST, stage=[name])))
    for layer in merged.layer:
        if layer.transform_param.mean_file:
            layer.transform_param.mean_file = find_file(layer.transform_param.mean_file, directory)
    spec = NetSpec.from_message(merged, source)
    return NetFile(text=spec.to_prototxt(), spec=spec, directories=directories), names


def _one_state(plan: NetPlan, phase: int) -> NetFile:
    """The net of a single state, whose layers are those of a phase."""
    chosen = NetParameter()
    chosen.CopyFrom(plan.spec.parameters)
    del chosen.layer[:]
    chosen.layer.extend(_layers_of(plan, NetStateRule(phase=TRAIN if phase == TRAIN else TEST)))
    spec = NetSpec.from_message(chosen, plan.spec.source)
    return NetFile(text=spec.to_prototxt(), spec=spec, directories=directories_of(plan.spec.source))


def _layers_of(plan: NetPlan, rule: NetStateRule) -> list[LayerParameter]:
    """The layers of a state, whose own rules have been applied, under another rule."""
    state = plan.state
    phase = "TRAIN" if state.phase == TRAIN else "TEST"
    chosen = plan.spec.select(phase, level=state.level, stages=tuple(state.stage))
    for layer in chosen.parameters.layer:
        del layer.include[:], layer.exclude[:]
        layer.include.append(rule)
    return list(chosen.parameters.layer)


def _names_of(tests: Sequence[NetPlan]) -> list[str]:
    """A name for each further test: that of its stages where it has its own, else its number as in Caffe's log."""
    # Stages that the net's file itself is in are those of every state.
    staged = ["-".join(sorted({*plan.state.stage} - {*plan.spec.parameters.state.stage})) for plan in tests]
    return [
        stage if stage and staged.count(stage) == 1 else f"test-net-{number}"
        for number, stage in enumerate(staged, start=1)
    ]


def _phase_alone(plan: NetPlan) -> Any:
    """The state of the tested net where the solver names none: the training net's, in phase TEST."""
    state = type(plan.state)()
    state.CopyFrom(plan.state)
    state.phase = TEST
    return state


def _run_name(spec: NetSpec) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in spec.parameters.name)
    return kept.strip("-_.").lower() or "caffe"
