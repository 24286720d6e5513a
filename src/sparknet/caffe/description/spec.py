"""The description of a net, from a file, from a message or from the layer functions."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sparknet.caffe.description.state_rules import select
from sparknet.caffe.description.upgrade import upgrade_net
from sparknet.caffe.prototxt import Parsed, format_text, parse_text, read_text
from sparknet.caffe.schema import TEST, TRAIN, LayerParameter, NetParameter
from sparknet.errors import NetError

__all__ = ["NetSpec", "PhaseName"]

PhaseName = Literal["TRAIN", "TEST"]


@dataclass(frozen=True, eq=False, slots=True)
class NetSpec:
    """A net as Caffe's `NetParameter` describes it, in the modern form.

    Attributes:
        parameters: the message; legacy files have been upgraded. Not to be changed.
        source: the file, for error messages.
        lines: line of each layer in that file; None for a layer that no line stands for.
        python_path: directories in which modules of Python layers are looked for; None: such layers, whose code
            would run when the net is built, are refused.
    """

    parameters: NetParameter
    source: str = "<net>"
    lines: tuple[int | None, ...] = ()
    python_path: tuple[str, ...] | None = None

    @classmethod
    def from_prototxt(cls, path_or_text: str | os.PathLike[str]) -> "NetSpec":
        """Read a prototxt file, or the text itself, in any of Caffe's three generations of the format.

        Raises:
            NetError: the file is missing, or the text is no net; the message names file, line and field.
        """
        return cls._of(read_text(path_or_text, NetParameter))

    @classmethod
    def from_text(cls, text: str, source: str = "<text>") -> "NetSpec":
        """Read the content of a prototxt file, in any of the three generations; `source` is its name, for errors.

        Raises:
            NetError: the text is no net.
        """
        return cls._of(parse_text(text, NetParameter, source=source))

    @classmethod
    def _of(cls, parsed: Parsed[NetParameter]) -> "NetSpec":
        upgrade = upgrade_net(parsed.message, source=parsed.source, lines=parsed.lines)
        lines = tuple(parsed.lines.get(origin) if origin else None for origin in upgrade.origins)
        return cls(upgrade.net, parsed.source, lines)

    @classmethod
    def from_message(cls, message: NetParameter, source: str = "<net>") -> "NetSpec":
        """Take a message of any generation of the format; a copy is kept."""
        return cls(upgrade_net(message, source=source).net, source)

    def select(self, phase: PhaseName, *, level: int | None = None, stages: Sequence[str] = ()) -> "NetSpec":
        """The net of one state: only layers whose include and exclude rules admit it.

        Args:
            phase: in place of the one that the file's own `state` names.
            level: in place of that `state`'s; None: that one.
            stages: beside that `state`'s.

        Raises:
            NetError: a layer has both kinds of rules.
        """
        own = self.parameters.state
        level = own.level if level is None else level
        stages = tuple(dict.fromkeys((*own.stage, *stages)))
        kept = select(self.parameters, phase=phase, level=level, stages=stages)
        chosen = NetParameter()
        chosen.CopyFrom(self.parameters)
        del chosen.layer[:]
        chosen.layer.extend(self.parameters.layer[index] for index in kept)
        chosen.state.phase = TRAIN if phase == "TRAIN" else TEST
        chosen.state.level = level
        chosen.state.stage[:] = stages
        lines = tuple(self.lines[index] for index in kept) if self.lines else ()
        return replace(self, parameters=chosen, lines=lines)

    def allowing_python_layers(self, *directories: str | os.PathLike[str]) -> "NetSpec":
        """The same net, whose Python layers may run their code.

        Args:
            directories: where their modules are looked for, behind PYTHONPATH; not given: the current directory,
                then that of the file.
        """
        path = [str(Path(directory).absolute()) for directory in directories]
        if not directories:
            path = [str(Path.cwd())]
            if self.source != "<text>" and Path(self.source).is_file():
                path.append(str(Path(self.source).absolute().parent))
        return replace(self, python_path=tuple(dict.fromkeys(path)))

    def python_layers(self) -> "Iterator[tuple[int, LayerParameter]]":
        """The layers of type Python, with their places."""
        return ((index, layer) for index, layer in enumerate(self.parameters.layer) if layer.type == "Python")

    def check_python_layers(self) -> None:
        """Refuse layers whose code may not run.

        Raises:
            NetError: there are some; the message says which code it is.
        """
        if self.python_path is not None:
            return
        named = [
            f"{self.place(index)}: {layer.python_param.layer} of module {layer.python_param.module}"
            for index, layer in self.python_layers()
        ]
        if named:
            raise NetError(
                f"the net has layers that are code, which runs with your rights: {'; '.join(named)}. Where you "
                "trust it, allow it: --allow-python-layers on the command line, net.allow_python_layers = true in "
                "a configuration, NetSpec.allowing_python_layers() in Python"
            )

    def in_stage(self, stage: str) -> "NetSpec":
        """The same net, of which every state is in this stage too."""
        staged = NetParameter()
        staged.CopyFrom(self.parameters)
        staged.state.stage.append(stage)
        return NetSpec(staged, self.source, self.lines)

    def to_prototxt(self) -> str:
        """The description as text that Caffe reads."""
        return format_text(self.parameters)

    def place(self, index: int) -> str:
        """Where a layer stands, to begin an error message: its name, type, file and line."""
        layer = self.parameters.layer[index]
        line = self.lines[index] if self.lines else None
        where = f"{self.source}:{line}" if line else self.source
        return f"{where}: layer {layer.name!r} ({layer.type})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetSpec) and self.parameters == other.parameters
