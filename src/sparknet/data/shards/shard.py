"""A shard as the manifest names it."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from sparknet.errors import ConfigError

__all__ = ["Shard", "check_path"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of rows, as the manifest names it."""

    path: str
    """Relative to the manifest's directory."""
    rows: int
    """Rows in the file."""
    reader: Literal["arrow"] = "arrow"
    """What reads it."""
    bytes: int = 0
    """Of the file; 0 where nobody counted them, of shards that are read where they were written."""
    sha256: str = ""
    """Of the file, 64 hexadecimal digits; without it a shard is not fetched."""

    def __post_init__(self) -> None:
        check_path(self.path)
        if self.sha256 and not _SHA256.fullmatch(self.sha256):
            raise ConfigError(f"sha256 of {self.path} is {self.sha256!r}; it must be 64 hexadecimal digits")
        if min(self.rows, self.bytes) < 0:
            raise ConfigError(f"{self.path} has {self.rows} rows in {self.bytes} bytes; neither is below 0")


def check_path(path: str) -> None:
    """Refuse the name of a file that may lead out of the manifest's directory.

    Raises:
        ConfigError: it is absolute, empty, or has a part `..`.
    """
    if not path or PurePosixPath(path).is_absolute() or ".." in path.split("/"):
        raise ConfigError(f"path is {path!r}; it must be relative to the manifest's directory, without '..'")
