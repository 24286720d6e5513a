"""The door of a run: what its configuration names is read once, here, and handed on as what it came to.

Behind it a configuration holds the texts of Caffe's files and no relative path, so that it means the same on every
machine and when it is resumed from another directory.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.description.upgrade import upgrade_solver
from sparknet.caffe.prototxt import format_text, parse_text, read_content
from sparknet.caffe.prototxt.tokens import Tokens, unescape
from sparknet.caffe.schema import SolverParameter
from sparknet.caffe.schema.strings import readable
from sparknet.caffe.solver.named_files import find_file
from sparknet.caffe.solver.settings import SolverSettings
from sparknet.caffe.solver.solverstate import read_state
from sparknet.config import Data, Net, RunConfig
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.passes import PASS
from sparknet.errors import ConfigError
from sparknet.training.caffe_runs.channels import with_channels
from sparknet.training.caffe_runs.run_hooks import CaffeHook
from sparknet.training.caffe_runs.sizes import with_sizes
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.given_code import Code
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.recipe import Recipe, with_python_layers
from sparknet.training.run_files.run_hook import RunHook

__all__ = [
    "NetFile",
    "RunStart",
    "SolverFile",
    "directories_of",
    "kept_text",
    "open_run",
    "read_net",
    "read_solver",
]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class NetFile:
    """A net's file, read."""

    text: str
    spec: NetSpec
    directories: tuple[str, ...] = ()
    """Where the file lies, or the files that it was made of: modules of Python layers may lie beside them."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class SolverFile:
    """A solver's file, read."""

    text: str
    message: SolverParameter
    """In the modern form."""
    source: str
    """Its name, for errors."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class RunStart:
    """A run before it starts."""

    config: RunConfig
    """Self-contained."""
    recipe: Recipe
    """What `config` says of net and solver, with the files' names for errors."""
    hook: RunHook | None = None
    """What is done beside the loop."""
    initial: nn.Module | None = None
    """A module with the weights that the run begins with; None: the net's own."""
    built: tuple[RowSchema, Objective] | None = None
    """What a check before the start has built, and for which rows."""

    def objective(self, rows: RowSchema) -> Objective:
        """The run's objective for these stored rows: the one that was built for them, else a new one.

        Raises:
            NetError: it cannot be built, does not take the rows, or cannot be trained.
            ConfigError: the rows cannot be cut as section `data` says.
        """
        if self.built is not None and _alike(self.built[0], rows):
            return self.built[1]
        run, solver = self.config.run, self.config.solver
        return build_objective(
            self.recipe, rows, batch_size=solver.batch_size, seed=run.seed, data=self.config.data
        )


def open_run(
    config: RunConfig,
    *,
    net: NetFile | None = None,
    solver: SolverFile | None = None,
    code: Code | None = None,
) -> RunStart:
    """Read what a configuration names.

    Args:
        config: its paths are seen from the current directory.
        net: what was read of `config.net.prototxt` already.
        solver: the same of `config.solver.prototxt`.
        code: what a program gave for names of the configuration.

    Raises:
        NetError: a file is missing, or is no net or solver.
        ConfigError: a value of the solver breaks a rule, or it must be known how many rows there are and the net
            makes them itself.
        CheckpointError: the snapshot is missing or damaged.
    """
    net = net or (read_net(config.net.prototxt) if config.net.prototxt else None)
    solver = solver or (read_solver(config.solver.prototxt) if config.solver.prototxt else None)
    weights = ",".join(str(Path(name.strip()).absolute()) for name in config.net.weights.split(",") if name.strip())
    snapshot = str(Path(config.solver.snapshot).absolute()) if config.solver.snapshot else ""
    settings, text = _settings(solver) if solver else (None, "")
    config = replace(
        config,
        net=replace(
            config.net,
            prototxt=net.text if net else "",
            weights=weights,
            python_path=_python_path(config.net, net) if net else (),
        ),
        solver=replace(
            config.solver,
            prototxt=text,
            snapshot=snapshot,
            snapshot_step=config.solver.snapshot_step or _step_of(snapshot),
        ),
        data=_data_of(config.data, net.spec if net else None),
    )
    if config.data.of_net:
        config = replace(config, solver=replace(config.solver, batch_size=1))
    # From what was read and not from the texts in `config`: errors then name the user's file and line.
    recipe = Recipe(
        net=config.net,
        spec=with_python_layers(net.spec, config.net) if net else None,
        objective=config.objective,
        solver=config.solver,
        code=code or {},
        settings=settings,
    )
    _check_passes(config)
    hook = CaffeHook(config, settings) if net or solver or weights else None
    return RunStart(config=config, recipe=recipe, hook=hook)


def read_net(path_or_text: str, directory: Path | None = None) -> NetFile:
    """Read a net's file, or its text, and find its mean files.

    Args:
        path_or_text: the net.
        directory: where its mean files are looked for beside the current directory; None: where its own file lies.

    Raises:
        NetError: it is missing, or no net.
    """
    text, source = kept_text(path_or_text)
    if directory is None and source == path_or_text:
        directory = Path(source).parent
    text = _with_means(text, directory)
    return NetFile(text=text, spec=NetSpec.from_text(text, source), directories=directories_of(source))


def read_solver(path_or_text: str) -> SolverFile:
    """Read a solver's file, or its text.

    Raises:
        NetError: it is missing, or no solver.
    """
    text, source = kept_text(path_or_text)
    message = upgrade_solver(parse_text(text, SolverParameter, source=source).message)
    return SolverFile(text=text, message=message, source=source)


def kept_text(path_or_text: str) -> tuple[str, str]:
    """Text that a configuration can keep, and its name for errors."""
    text, source = read_content(path_or_text)
    if source == path_or_text:
        # As TOML's strings have them, and with one at the end, which tells text from a path.
        text = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n") + "\n"
    return text, source


def _check_passes(config: RunConfig) -> None:
    """Refuse a net that makes its own rows where something asks how many there are."""
    if not config.data.of_net:
        return
    if not config.net.prototxt:
        raise ConfigError(
            f"data.source is 'net' and net.name {config.net.name!r}; only the Python layers of a Caffe net make "
            "their own rows: name other rows"
        )
    for key, missing, asked in (
        ("run.rounds", config.run.epochs is not None, "set it or run.iterations, not run.epochs"),
        (
            "run.eval_batches",
            config.run.eval_batches is None,
            "set it, test_iter in the solver, or --iterations of a test",
        ),
    ):
        if missing:
            raise ConfigError(f"{key} is not given and the net makes its own rows, which have no number: {asked}")


def directories_of(*sources: str) -> tuple[str, ...]:
    """Where files lie, seen from the root; what is the name of no file is passed over."""
    # A text stands for itself, and may be longer than any path.
    files = [source for source in sources if "\n" not in source and Path(source).is_file()]
    return tuple(dict.fromkeys(str(Path(file).absolute().parent) for file in files))


def _python_path(section: Net, net: NetFile) -> tuple[str, ...]:
    """Where modules of the net's Python layers are looked for; nothing where it has none."""
    if not any(net.spec.python_layers()):
        return section.python_path
    given = section.python_path or (".", *net.directories)
    return tuple(dict.fromkeys(str(Path(directory).absolute()) for directory in given))


def _alike(built: RowSchema, rows: RowSchema) -> bool:
    """Whether a net built for the one takes the other: it knows names and shapes, and not the stored type."""
    return _shape_of(built) == _shape_of(rows)


def _shape_of(rows: RowSchema) -> list[list[tuple[str, tuple[int, ...], int | None]]]:
    sides = (rows.inputs, rows.targets)
    return [[(column.name, column.shape, column.classes) for column in side] for side in sides]


def _settings(solver: SolverFile) -> tuple[SolverSettings, str]:
    """The values of a solver's file and its text, both with an absolute snapshot_prefix."""
    # The run's net is told elsewhere, so that those which the file names do not matter.
    settings = SolverSettings.from_message(solver.message, solver.source, own_nets=False)
    prefix = settings.snapshot_prefix
    if not prefix or Path(prefix).is_absolute():
        return settings, solver.text
    prefix = os.path.join(Path.cwd(), prefix)  # noqa: PTH118 - a slash at the end, which tells a directory, is kept
    return replace(settings, snapshot_prefix=prefix), _with_prefix(solver.text, prefix)


def _with_means(text: str, directory: Path | None) -> str:
    """A net's text with its mean files as they are found; the rest stays as it was written."""
    if directory is None:
        return text
    tokens, pieces, before = Tokens(text, "<text>"), list[str](), 0
    while tokens.kind != "end":
        named = tokens.kind == "name" and tokens.text in ("mean_file", "meanfile")
        tokens.advance()
        if not named:
            continue
        tokens.take(":")
        if tokens.kind != "string":
            continue  # whoever reads the net says so
        name, start, end = _text_here(tokens)
        found = find_file(name, directory)
        if found != name:
            pieces += (text[before:start], _quoted(found))
            before = end
    return "".join((*pieces, text[before:]))


def _step_of(snapshot: str) -> tuple[int, ...]:
    """Iteration and step count of a snapshot: kept, since a run is resumed when the file may be gone."""
    if not snapshot:
        return ()
    state = read_state(snapshot)
    return state.iteration, state.current_step


def _with_prefix(text: str, prefix: str) -> str:
    """A solver's text with another snapshot_prefix; the rest, comments too, stays as it was written."""
    tokens, depth = Tokens(text, "<text>"), 0
    while tokens.kind != "end":
        found = depth == 0 and tokens.kind == "name" and tokens.text == "snapshot_prefix"
        # Only at the top: a net that stands in the solver has braces of its own, and may have any field in them.
        if tokens.kind == "symbol":
            depth += (tokens.text in "{<[") - (tokens.text in "}>]")
        tokens.advance()
        if found:
            tokens.take(":")
            _, start, end = _text_here(tokens)
            return text[:start] + _quoted(prefix) + text[end:]
    return text


def _text_here(tokens: Tokens) -> tuple[str, int, int]:
    """The string that begins at the current token, and where it begins and ends in the text."""
    content, start, end = b"", tokens.start, tokens.start
    while tokens.kind == "string":  # one string may be written in several pieces, over several lines
        content += unescape(tokens)
        end = tokens.start + len(tokens.text)
        tokens.advance()
    return readable(content), start, end


def _quoted(text: str) -> str:
    return format_text(SolverParameter(snapshot_prefix=text)).partition(":")[2].strip()


def _data_of(data: Data, spec: NetSpec | None) -> Data:
    """Section `data` without relative paths, and with what a Caffe net adds where nothing is said."""
    if spec is None:
        return _from_anywhere(data)
    if data.of_net:
        data = replace(data, inputs=(PASS,), targets=(PASS,), validation_fraction=data.validation_fraction or 0.5)
    data = replace(
        _from_anywhere(data),
        # Caffe's tools decode to blue, green, red, and its nets are trained on that.
        channel_order=data.channel_order or "bgr",
        # Its labels are what they are: a layer may leave out those of one value, or take distances for labels.
        class_values=data.class_values or "stored",
    )
    return with_sizes(with_channels(data, spec), spec)


def _from_anywhere(data: Data) -> Data:
    return replace(
        data,
        path=_absolute(data.path),
        validation_path=_absolute(data.validation_path),
        labels=_absolute(data.labels),
        validation_labels=_absolute(data.validation_labels),
        root=_absolute(data.root),
        mean_file=_absolute(data.mean_file),
        beside={
            name: replace(
                one,
                path=_absolute(one.path),
                validation_path=_absolute(one.validation_path),
                labels=_absolute(one.labels),
                validation_labels=_absolute(one.validation_labels),
                root=_absolute(one.root),
            )
            for name, one in data.beside.items()
        },
        columns={
            name: replace(column, mean_file=_absolute(column.mean_file)) for name, column in data.columns.items()
        },
    )


def _absolute(path: str) -> str:
    """A local path or glob seen from the root; a URI, a home directory and an empty path stay as they are."""
    # What another machine or user must resolve is not for this directory to complete.
    if not path or "://" in path or path.startswith(("file:", "~")):
        return path
    return os.path.join(Path.cwd(), path)  # noqa: PTH118 - a slash at the end, which tells a directory, is kept
