"""Where a Caffe user's rows come from: what `--data` says, and where it says nothing, the net's own data layers."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparknet.caffe.description.spec import NetSpec, PhaseName
from sparknet.caffe.schema import LayerParameter
from sparknet.caffe.solver.named_files import find_file
from sparknet.data.sources.registry import FORMATS
from sparknet.data.storage.place import Storage
from sparknet.errors import ConfigError

__all__ = ["NetSources", "data_source"]

_HELD_OUT = ("data.validation_path", "data.validation_column", "data.validation_fraction")


@dataclass(frozen=True, kw_only=True, slots=True)
class NetSources:
    """What the data layers of a net's two phases say of where rows come from."""

    spec: NetSpec
    directory: Path
    """A database is looked for from the current directory, as in Caffe, and else from here."""

    def database(self, phase: PhaseName) -> str:
        """Path of the LMDB that a phase reads; empty where it reads none that is on this machine.

        Raises:
            ConfigError: the database is of LevelDB's format.
        """
        layers = self._databases(phase)
        return self._source(layers[0]) if layers else ""

    def beside(self, testing: bool) -> dict[str, Any]:
        """The `data` keys of further databases that are read in step with the first, one column for each top.

        Args:
            testing: only those of phase TEST are needed.

        Raises:
            ConfigError: a database is missing in one of the phases, or is of LevelDB's format.
        """
        first, *others = self._databases("TEST" if testing else "TRAIN")
        found: dict[str, dict[str, str]] = {}
        for layer in others:
            for place, top in enumerate(layer.top):
                paths = {phase: self._source_of_top(phase, top) for phase in ("TRAIN", "TEST")}
                train = paths["TEST"] if testing else paths["TRAIN"]
                column = "label" if place else "image"
                found[top] = {"source": "lmdb", "path": train, "validation_path": paths["TEST"], "column": column}
        judged = self._judged_blobs()
        own = ["label"] if len(first.top) > 1 else []
        return {
            "beside": found,
            "inputs": ["image", *(top for top in found if top not in judged)],
            "targets": [*own, *(top for top in found if top in judged)] or ["label"],
        }

    @property
    def several(self) -> bool:
        """Whether phase TRAIN, or in a file without one phase TEST, reads several databases."""
        return any(len(self._databases(phase)) > 1 for phase in ("TRAIN", "TEST"))

    def _databases(self, phase: PhaseName) -> list[LayerParameter]:
        """Data layers that name a database, first the one with the images."""
        layers = [
            layer
            for layer in self.spec.select(phase).parameters.layer
            if layer.type == "Data" and layer.data_param.source
        ]
        judged = self._judged_blobs()
        return sorted(layers, key=lambda layer: layer.top[0] in judged)

    def _judged_blobs(self) -> set[str]:
        """Blobs against which a loss or a measure holds what the net has found: every bottom but the first."""
        return {
            bottom
            for layer in self.spec.parameters.layer
            if layer.type.endswith("Loss") or layer.type == "Accuracy"
            for bottom in layer.bottom[1:]
        }

    def _source_of_top(self, phase: PhaseName, top: str) -> str:
        layer = next((layer for layer in self._databases(phase) if top in layer.top), None)
        source = self._source(layer) if layer else ""
        if not source:
            named = f"layer {layer.name!r} names {layer.data_param.source!r}" if layer else "no layer makes it"
            raise ConfigError(
                f"{self.spec.source}: blob {top!r} comes from a database of its own, and in phase {phase} {named}, "
                "which is not here: all databases of a net are read in step: correct the paths"
            )
        return source

    def _source(self, layer: LayerParameter) -> str:
        source = find_file(layer.data_param.source, self.directory)
        # Published nets name the databases of their authors: one that is not here is as good as none named.
        if not Path(source).exists():
            return ""
        if layer.data_param.backend != layer.data_param.LMDB:
            raise ConfigError(
                f"{self.spec.source}: layer {layer.name!r} reads {source} as LevelDB, which is not read here; make "
                "an LMDB of it, set backend: LMDB, or name other rows: --data KIND:PATH"
            )
        return source

    def resize(self) -> list[int]:
        """Height and width that an ImageData layer brings its images to; empty where there is none."""
        # Only the size is taken: the layer's list of files is no source of rows here.
        layer = self._layer("TRAIN", "ImageData") or self._layer("TEST", "ImageData")
        if layer is None or not layer.image_data_param.new_height:
            return []
        return [int(layer.image_data_param.new_height), int(layer.image_data_param.new_width)]

    def missing(self, phase: PhaseName) -> str:
        """Why a phase names no rows, for messages."""
        layer = self._layer(phase, "Data")
        if layer is None:
            return f"phase {phase} of {self.spec.source} has no Data layer"
        return f"layer {layer.name!r} of {self.spec.source} names {layer.data_param.source!r}, which is not here"

    def _layer(self, phase: PhaseName, kind: str) -> LayerParameter | None:
        layers = self.spec.select(phase).parameters.layer
        return next((layer for layer in layers if layer.type == kind), None)


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
    resize = {"resize": net.resize()} if net is not None and net.resize() else {}
    if source is None:
        return resize | _of_layers(net, testing=testing, held_out=held_out)
    kind, path = _kind_and_path(source)
    table: dict[str, Any] = {"source": kind, "path": path, **resize}
    if held_out:
        return table
    if FORMATS[kind].held_out:
        return {**table, "validation_fraction": FORMATS[kind].held_out}
    if testing or _has_tests(kind, path, overrides):
        return {**table, "validation_path": path}  # where its test files are missing, the source itself says so
    database = net.database("TEST") if net is not None and kind == "lmdb" else ""
    if database:
        return {**table, "validation_path": database}
    raise ConfigError(
        f"--data is {source!r}; say which rows are held out for tests: --set data.validation_path=PATH names "
        "others, --set data.validation_fraction=0.1 draws a share"
    )


def _of_layers(net: NetSources | None, *, testing: bool, held_out: bool) -> dict[str, Any]:
    found = {phase: net.database(phase) for phase in ("TRAIN", "TEST")} if net is not None else {}
    needed = ("TEST",) if testing else ("TRAIN",) if held_out else ("TRAIN", "TEST")
    for phase in needed:
        if not found.get(phase):
            why = net.missing(phase) if net is not None else "there is no net"
            raise ConfigError(f"--data is not given, and {why}: give --data KIND:PATH, as in --data lmdb:PATH")
    beside = net.beside(testing) if net is not None and net.several else {}
    if testing:
        return {"source": "lmdb", "path": found["TEST"], "validation_path": found["TEST"], **beside}
    table = {"source": "lmdb", "path": found["TRAIN"], **beside}
    return table if held_out else {**table, "validation_path": found["TEST"]}


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
    # The configuration is not built yet, for want of this very answer: the endpoint is taken from what was typed.
    endpoints = [setting.partition("=")[2] for setting in overrides if _key(setting) == "data.s3_endpoint"]
    return holds_tests(Storage(s3_endpoint=endpoints[-1].strip().strip("'\"") if endpoints else "").place(path))


def _key(setting: str) -> str:
    """What an override sets."""
    return setting.partition("=")[0].strip()
