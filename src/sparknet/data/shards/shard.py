"""A shard as the manifest names it."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Shard"]


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
