"""Where a Caffe user's rows come from: what `--data` says, and where it says nothing, the net's own data layers."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparknet.caffe.description.spec import NetSpec, PhaseName
from sparknet.caffe.layers.inputs import INPUT_LAYERS
from sparknet.caffe.schema import TEST, TRAIN, LayerParameter
from sparknet.caffe.schema.net_format_pb2 import TransformationParameter
from sparknet.caffe.solver.named_files import find_file
from sparknet.caffe.weights.mean_image import read_mean
from sparknet.data.sources.files import Location
from sparknet.data.sources.registry import FORMATS
from sparknet.data.storage.place import Storage
from sparknet.errors import ConfigError, DataError
from sparknet.training.objectives.input_binding import inputs_of, makes_rows

__all__ = ["NetSources", "data_source"]

_NAMED = ("data.image", "data.label", "data.features", "data.inputs", "data.targets")
_HELD_OUT = ("data.validation_path", "data.validation_column", "data.validation_fraction", "data.validation")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fed:
    """A data layer, and the rows that it names."""

    layer: LayerParameter
    source: str
    """The format of the rows."""
    path: str
    """Empty where they are not on this machine."""
    root: str = ""
    """Where a list's relative paths begin."""
    rule: dict[str, Any]
    """What is said of its images, as keys of their column."""
    windows: dict[str, Any] | None = None
    """Which windows of its images are rows, and how they are cut out, as keys of `data.windows`."""

    def column(self, top: str) -> str:
        """Which column of the rows a top is."""
        if self.source == "hdf5":
            return top
        return "label" if list(self.layer.top).index(top) else "image"


@dataclass(frozen=True, kw_only=True, slots=True)
class NetSources:
    """What the data layers of a net's two phases say of where rows come from."""

    spec: NetSpec
    directory: Path
    """A file is looked for from the current directory, as in Caffe, and else from here."""
    tests: Mapping[str, int | None] = field(default_factory=dict[str, int | None])
    """By name, a stage of phase TEST, the further tests of the net, and how many batches each looks at."""
    tested: bool = True
    """Tests are asked for; if not, phase TEST may lack rows, or may not be there at all."""

    def makes_rows(self, *, testing: bool) -> bool:
        """Whether the layers of a phase make its rows themselves, and it takes none."""
        state = self.spec.select("TEST" if testing else "TRAIN")
        return makes_rows(state) and not inputs_of(state)

    def path(self, phase: PhaseName, source: str) -> str:
        """Path of the rows of this format that a phase reads; empty where it reads none that are on this machine.

        Raises:
            ConfigError: they are a database of LevelDB's format.
        """
        layers = self._fed(phase)
        return layers[0].path if layers and layers[0].source == source else ""

    def table(self, *, testing: bool, held_out: bool) -> dict[str, Any]:
        """The `data` table of what the layers name: all sources of a phase are read in step.

        The first source is that of the images; of further ones each top is a column.

        Args:
            testing: only the rows of phase TEST are needed.
            held_out: the settings say which rows are held out, so that of one source phase TEST's are not needed.

        Raises:
            ConfigError: a phase names no rows, or such as are not here, or the phases do not go together.
        """
        fed: dict[PhaseName, list[_Fed]] = {phase: self._fed(phase) for phase in _PHASES}
        untested = not (testing or held_out or self.tested) and not _all_here(fed["TEST"])
        several = any(len(layers) > 1 for layers in fed.values())
        needed: tuple[PhaseName, ...] = (
            ("TEST",) if testing else ("TRAIN",) if untested or (held_out and not several) else _PHASES
        )
        for phase in needed:
            if not _all_here(fed[phase]):
                raise ConfigError(
                    f"--data is not given, and {self._missing(phase)}: give --data KIND:PATH, as in --data "
                    "lmdb:PATH"
                )
        first = fed["TEST" if testing else "TRAIN"][0]
        held = fed["TEST"][0] if "TEST" in needed else None
        if held is not None and held.source != first.source:
            raise ConfigError(
                f"{self.spec.source}: layer {first.layer.name!r} reads {first.source} and {held.layer.name!r} "
                f"reads {held.source}; both phases must read rows of one format: make the layers alike, or give "
                "--data"
            )
        self._check_windows([*fed["TRAIN"], *fed["TEST"]] if held is not None else fed["TRAIN"], several=several)
        for phase in needed:
            self._check_batches(fed[phase])
        table: dict[str, Any] = {"source": first.source, "path": first.path}
        table |= {"windows": first.windows} if first.windows else {}
        table |= {"root": first.root} if first.root else {}
        table |= {"validation_path": held.path} if held is not None else {}
        table |= {"validation": "none"} if untested else {}
        table |= {"tests": self._tests_table(first)} if self.tests and not testing else {}
        if not several:
            return table | self._columns_of(first) | first.rule
        others = fed["TEST" if testing else "TRAIN"][1:]
        return table | self._in_step(first, others, [] if untested else fed["TEST"], untested=untested)

    def _tests_table(self, first: _Fed) -> dict[str, Any]:
        """The rows of the further tests."""
        tables: dict[str, Any] = {}
        for name, batches in self.tests.items():
            layers = self._fed("TEST", stage=name)
            if not _all_here(layers):
                raise ConfigError(
                    f"--data is not given, and {self._missing('TEST', stage=name)}: give --data KIND:PATH, as in "
                    "--data lmdb:PATH"
                )
            if layers[0].source != first.source:
                raise ConfigError(
                    f"{self.spec.source}: layer {first.layer.name!r} reads {first.source} and "
                    f"{layers[0].layer.name!r} reads {layers[0].source}; all rows of a net must be of one format: "
                    "make the layers alike, or give --data"
                )
            beside = {top: one.path for one in layers[1:] for top in one.layer.top}
            tables[name] = {"path": layers[0].path} | ({"beside": beside} if beside else {})
            tables[name] |= {"batches": batches} if batches else {}
        return tables

    def tests_of_held_out(self) -> dict[str, Any]:
        """The further tests where all judge the held-out rows, whatever their layers name."""
        return {name: {"batches": batches} if batches else {} for name, batches in self.tests.items()}

    def _columns_of(self, first: _Fed) -> dict[str, Any]:
        """Names of the columns of a single source that has its own."""
        if first.source != "hdf5":
            return {}
        return self._sides(first.layer.top)

    def columns_called(self, names: Sequence[str], *, testing: bool) -> dict[str, Any]:
        """The columns that are called as the inputs of the phases that read them; nothing if not all are there.

        Args:
            names: of all columns.
            testing: only phase TEST reads them.
        """
        phases: tuple[PhaseName, ...] = ("TEST",) if testing else _PHASES if self.tested else ("TRAIN",)
        blobs = [blob.name for phase in phases for blob in inputs_of(self.spec.select(phase))]
        wanted = list(dict.fromkeys(blobs))
        return self._sides(wanted) if wanted and set(wanted) <= set(names) else {}

    def _sides(self, columns: Sequence[str]) -> dict[str, Any]:
        judged = self._judged_blobs()
        inputs = [column for column in columns if column not in judged]
        targets = [column for column in columns if column in judged]
        # A column may be both: a net that is measured by what it is given.
        return {"inputs": inputs or targets, "targets": targets or inputs}

    def _in_step(self, first: _Fed, others: list[_Fed], tests: list[_Fed], *, untested: bool) -> dict[str, Any]:
        """What is said of several sources beside the first one's own."""
        beside: dict[str, dict[str, str]] = {}
        rules: dict[str, dict[str, Any]] = {}
        for one in others:
            for top in one.layer.top:
                held = next((test for test in tests if top in test.layer.top), None)
                if not untested and (held is None or held.source != one.source):
                    raise ConfigError(
                        f"{self.spec.source}: blob {top!r} comes from rows of its own ({one.source}), and in phase "
                        f"TEST {'from ' + held.source if held else 'no data layer gives it'}; all sources of a net "
                        "are read in step: give both phases the same blobs"
                    )
                beside[top] = {
                    "source": one.source,
                    "path": one.path,
                    "column": one.column(top),
                }
                beside[top] |= {"validation_path": held.path} if held is not None else {}
                beside[top] |= {"root": one.root} if one.root else {}
                if one.rule and one.column(top) == "image":
                    rules[top] = one.rule
        judged = self._judged_blobs()
        own = {top: top if first.source == "hdf5" else first.column(top) for top in first.layer.top}
        if first.rule:
            rules["image"] = first.rule
        inputs = [column for top, column in own.items() if column != "label" and top not in judged]
        targets = [column for top, column in own.items() if column == "label" or top in judged]
        targets += [top for top in beside if top in judged]
        return {
            "beside": beside,
            "inputs": [*inputs, *(top for top in beside if top not in judged)],
            # Without any, a net that is measured by what it is given.
            "targets": targets or inputs[:1],
            **({"columns": rules} if rules else {}),
        }

    def _fed(self, phase: PhaseName, *, stage: str = "") -> list[_Fed]:
        """Data layers that name rows, first the one with the images."""
        judged = self._judged_blobs()
        layers = [
            layer
            for layer in self._layers(phase, stage)
            if layer.type in _NAMING and getattr(layer, _NAMING[layer.type][0]).source
        ]
        return [self._fed_by(layer) for layer in sorted(layers, key=lambda layer: layer.top[0] in judged)]

    def _layers(self, phase: PhaseName, stage: str = "") -> Sequence[LayerParameter]:
        return self.spec.select(phase, stages=[stage] if stage else []).parameters.layer

    def _fed_by(self, layer: LayerParameter) -> _Fed:
        key, source = _NAMING[layer.type]
        said = getattr(layer, key)
        path = find_file(said.source, self.directory)
        # Published nets name the files of their authors: one that is not here is as good as none named.
        if not Path(path).exists():
            path = ""
        if path and layer.type == "Data" and layer.data_param.backend != layer.data_param.LMDB:
            raise ConfigError(
                f"{self.spec.source}: layer {layer.name!r} reads {path} as LevelDB, which is not read here; make "
                "an LMDB of it, set backend: LMDB, or name other rows: --data KIND:PATH"
            )
        root, rule = "", dict[str, Any]()
        if layer.type == "WindowData":
            folder = layer.window_data_param.root_folder
            root = find_file(folder, self.directory) if folder else ""
            return _Fed(layer=layer, source=source, path=path, root=root, rule=rule, windows=_windows_of(layer))
        if layer.type == "ImageData":
            images = layer.image_data_param
            root = find_file(images.root_folder, self.directory) if images.root_folder else ""
            rule = {"resize": size} if (size := _size_of_images(layer)) else {}
        return _Fed(layer=layer, source=source, path=path, root=root, rule=rule)

    def _check_batches(self, layers: list[_Fed]) -> None:
        """Hold the batches of one phase's layers against each other: its rows go in step."""
        sizes = [getattr(one.layer, _NAMING[one.layer.type][0]).batch_size for one in layers]
        for one, size in zip(layers, sizes, strict=True):
            if size != sizes[0]:
                raise ConfigError(
                    f"{self.spec.source}: layer {layers[0].layer.name!r} has batch_size {sizes[0]} and "
                    f"{one.layer.name!r} {size}; all sources of a net are read in step, a row of each: give both "
                    "the same"
                )

    def _check_windows(self, layers: list[_Fed], *, several: bool) -> None:
        """Hold layers that cut windows out of images against each other: all rows are prepared alike."""
        cutting = [one for one in layers if one.windows is not None]
        for one in cutting:
            if one.windows != cutting[0].windows:
                said = [
                    {key: value for key, value in (two.windows or {}).items() if other.get(key) != value}
                    for two, other in ((cutting[0], one.windows or {}), (one, cutting[0].windows or {}))
                ]
                raise ConfigError(
                    f"{self.spec.source}: layers {cutting[0].layer.name!r} and {one.layer.name!r} cut windows out "
                    f"in different ways, {said[0]} and {said[1]}; both phases must do it alike: make them equal"
                )
        if cutting and several:
            raise ConfigError(
                f"{self.spec.source}: layer {cutting[0].layer.name!r} reads windows, and another one reads rows "
                "beside it; windows are drawn and go with no other rows: take one of the layers out"
            )

    def windows(self) -> dict[str, Any] | None:
        """How a WindowData layer cuts windows out, as keys of `data.windows`; None where there is none."""
        for phase in _PHASES:
            for layer in self.spec.select(phase).parameters.layer:
                if layer.type == "WindowData":
                    return _windows_of(layer)
        return None

    def _judged_blobs(self) -> set[str]:
        """Blobs against which a loss or a measure holds what the net has found: every bottom but the first."""
        return {
            bottom
            for layer in self.spec.parameters.layer
            if layer.type.endswith("Loss") or layer.type == "Accuracy"
            for bottom in layer.bottom[1:]
        }

    def resize(self) -> list[int]:
        """Height and width that an ImageData layer brings its images to; empty where there is none."""
        for phase in _PHASES:
            for layer in self._layers(phase):
                if layer.type == "ImageData" and (size := _size_of_images(layer)):
                    return size
        return []

    def _missing(self, phase: PhaseName, *, stage: str = "") -> str:
        """Why a phase names no rows."""
        for one in self._fed(phase, stage=stage):
            if not one.path:
                named = getattr(one.layer, _NAMING[one.layer.type][0]).source
                return f"layer {one.layer.name!r} of {self.spec.source} names {named!r}, which is not here"
        for layer in self._layers(phase, stage):
            if layer.type in INPUT_LAYERS:
                return (
                    f"phase {phase} of {self.spec.source} has no Data layer that names rows: layer {layer.name!r} "
                    f"({layer.type}) takes what it is given"
                )
        state = f"phase {phase}{f' in stage {stage}' if stage else ''} of {self.spec.source}"
        for layer in self.spec.parameters.layer:
            stages = [name for rule in layer.include if rule.phase == _OF_PHASE[phase] for name in rule.stage]
            if layer.type in INPUT_LAYERS and stages:
                named = ", ".join(dict.fromkeys(stages))
                return (
                    f"{state} has no Data layer without a stage (layer {layer.name!r} is there in stage {named}: "
                    "name it in a solver's test_state, or by --stage)"
                )
        return f"{state} has no Data layer"


def _all_here(layers: Sequence[_Fed]) -> bool:
    return bool(layers) and all(one.path for one in layers)


_PHASES: tuple[PhaseName, ...] = ("TRAIN", "TEST")
_OF_PHASE = {"TRAIN": TRAIN, "TEST": TEST}
_NAMING = {
    "Data": ("data_param", "lmdb"),
    "ImageData": ("image_data_param", "image_list"),
    "WindowData": ("window_data_param", "windows"),
    "HDF5Data": ("hdf5_data_param", "hdf5"),
}
"""By type of layer the field that names its rows, and their format."""


def _size_of_images(layer: LayerParameter) -> list[int]:
    """Height and width that an ImageData layer brings its images to; empty where it leaves them."""
    images = layer.image_data_param
    return [int(images.new_height), int(images.new_width)] if images.new_height else []


def _windows_of(layer: LayerParameter) -> dict[str, Any]:
    """What a WindowData layer says, as keys of `data.windows`."""
    said, size = layer.window_data_param, int(layer.transform_param.crop_size)
    return {
        "size": size,
        "foreground_threshold": _as_written(said.fg_threshold),
        "background_threshold": _as_written(said.bg_threshold),
        "foreground_fraction": _as_written(said.fg_fraction),
        "context_pad": int(said.context_pad),
        "crop_mode": said.crop_mode,
        "fill": _mean_of(layer.transform_param, size),
    }


def _as_written(number: float) -> float:
    """A float32 as people write it: 0.7, of which Python makes 0.699999988079071."""
    return float(str(np.float32(number)))


def _mean_of(transform: TransformationParameter, size: int) -> list[int]:
    """The mean of each channel in whole numbers; none where none is named, or its file is not here."""
    means = list(transform.mean_value)
    if transform.mean_file and Path(transform.mean_file).is_file():
        mean = read_mean(transform.mean_file)
        offset = max(0, (mean.shape[2] - size) // 2)
        middle = mean[:, offset : offset + size, offset : offset + size]
        means = [float(value) for value in middle.mean(axis=(1, 2), dtype=np.float64)]
    return [min(255, max(0, round(value))) for value in (means * 3 if len(means) == 1 else means)]


def data_source(
    source: str | None,
    overrides: Sequence[str] = (),
    *,
    net: NetSources | None = None,
    testing: bool = False,
) -> dict[str, Any]:
    """The `data` table for `KIND:PATH`; overrides that say what is held out leave that to them.

    Args:
        source: what `--data` was given; None takes the databases that the net's data layers name.
        overrides: the other settings.
        net: the net's own data layers.
        testing: all rows are to be tested, a standard directory's test files.

    Raises:
        ConfigError: the kind is not known, a path is missing or too many, or the net names no rows.
    """
    held_out = any(_key(setting) in _HELD_OUT for setting in overrides)
    if source is None:
        if net is None:
            raise ConfigError(
                "--data is not given, and there is no net: give --data KIND:PATH, as in --data lmdb:PATH"
            )
        if net.makes_rows(testing=testing):
            return {"source": "net"}
        return net.table(testing=testing, held_out=held_out)
    kind, path = _kind_and_path(source)
    if kind == "net":
        if net is None:
            raise ConfigError("SOURCE is 'net'; rows that a net makes are there for it alone: name other rows")
        return {"source": kind}
    table: dict[str, Any] = {"source": kind, "path": path}
    if net is not None:
        table |= _said_by(net, kind, testing=testing)
        if not any(_key(setting) in _NAMED for setting in overrides):
            table |= _named_by(net, kind, path, overrides, testing=testing)
    return table if held_out else table | _held_out_of(kind, path, overrides, net=net, testing=testing)


def _held_out_of(
    kind: str, path: str, overrides: Sequence[str], *, net: NetSources | None, testing: bool
) -> dict[str, Any]:
    """Which rows are held out where the settings do not say it."""
    if FORMATS[kind].held_out:
        return {"validation_fraction": FORMATS[kind].held_out}
    if testing or _has_tests(kind, path, overrides):
        # Where its test files are missing, the source itself says so.
        return {"validation_path": path, **(_labels_of_tests(overrides) if testing else {})}
    tests = net.path("TEST", kind) if net is not None else ""
    if tests:
        return {"validation_path": tests}
    if net is not None and not net.tested:
        return {"validation": "none"}
    source = f"{kind}:{path}" if path else kind
    raise ConfigError(
        f"--data is {source!r}; say which rows are held out for tests: --set data.validation_path=PATH names "
        "others, --set data.validation_fraction=0.1 draws a share, --set data.validation=none holds out none"
    )


def _said_by(net: NetSources, kind: str, *, testing: bool) -> dict[str, Any]:
    """What a net's layers say of rows that are named beside it."""
    table: dict[str, Any] = {}
    # Of formats that hold files of images, or may: pixels are taken as they are.
    if net.resize() and (FORMATS[kind].names_rows or kind == "parquet"):
        table["resize"] = net.resize()
    if net.tests and not testing:
        table["tests"] = net.tests_of_held_out()
    if FORMATS[kind].has_windows and (windows := net.windows()) is not None:
        table["windows"] = windows
    return table


def _named_by(net: NetSources, kind: str, path: str, overrides: Sequence[str], *, testing: bool) -> dict[str, Any]:
    """The columns of a table that are called as the net's inputs are; nothing where one is missing."""
    names = FORMATS[kind].column_names
    if names is None:
        return {}
    try:
        found = names(Location(path=path, storage=_storage(overrides)))
    except DataError:
        return {}  # whoever reads the rows says more, and of both phases
    return net.columns_called(found, testing=testing)


def _storage(overrides: Sequence[str]) -> Storage:
    # The configuration is not built yet, for want of this very answer: the endpoint is taken from what was typed.
    endpoints = [setting.partition("=")[2] for setting in overrides if _key(setting) == "data.s3_endpoint"]
    return Storage(s3_endpoint=endpoints[-1].strip().strip("'\"") if endpoints else "")


def _kind_and_path(source: str) -> tuple[str, str]:
    kind, colon, path = source.partition(":")
    forms = ", ".join(f"{known}:PATH" if form.has_path else known for known, form in FORMATS.items())
    if kind not in FORMATS:
        close = difflib.get_close_matches(kind, FORMATS, n=1)
        hint = f"did you mean {close[0]}?" if close and colon else "the form is KIND:PATH."
        raise ConfigError(f"--data is {source!r}; {kind!r} is no kind of data: {hint} There are {forms}")
    if FORMATS[kind].has_path != bool(path):
        rule = f"{kind} comes without files: leave the path out" if path else f"give its path, as in {kind}:PATH"
        raise ConfigError(f"--data is {source!r}; {rule}")
    return kind, path


def _has_tests(kind: str, path: str, overrides: Sequence[str]) -> bool:
    holds_tests = FORMATS[kind].holds_tests
    if holds_tests is None:
        return False
    return holds_tests(_storage(overrides).place(path))


def _labels_of_tests(overrides: Sequence[str]) -> dict[str, str]:
    """The label file that was given: where all rows are tested, they are whose labels it has."""
    given = {_key(setting): setting.partition("=")[2].strip().strip("'\"") for setting in overrides}
    if "data.labels" in given and "data.validation_labels" not in given:
        return {"validation_labels": given["data.labels"]}
    return {}


def _key(setting: str) -> str:
    """What an override sets."""
    return setting.partition("=")[0].strip()
