"""The description of a net, from a file, from a message or from the layer functions."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sparknet.caffe.description.state_rules import select
from sparknet.caffe.description.upgrade import upgrade_net
from sparknet.caffe.prototxt import Parsed, format_text, parse_text, read_text
from sparknet.caffe.schema import TEST, TRAIN, NetParameter

__all__ = ["NetSpec", "PhaseName"]

PhaseName = Literal["TRAIN", "TEST"]


@dataclass(frozen=True, eq=False, slots=True)
class NetSpec:
    """A net as Caffe's `NetParameter` describes it, in the modern form.

    Attributes:
        parameters: the message; legacy files have been upgraded. Not to be changed.
        source: the file, for error messages.
        lines: line of each layer in that file; None for a layer that no line stands for.
    """

    parameters: NetParameter
    source: str = "<net>"
    lines: tuple[int | None, ...] = ()

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
        return NetSpec(chosen, self.source, lines)

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
