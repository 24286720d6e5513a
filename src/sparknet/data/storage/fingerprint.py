"""Knowing a source again: files by name, size and time of change."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparknet.data.storage.place import LOCAL, Facts
from sparknet.errors import DataError

__all__ = ["describe_files", "fingerprint"]


def describe_files(files: Iterable[Path | Facts]) -> list[list[str | int | None]]:
    """Absolute name or URI, bytes and time of change (nanoseconds; None: not kept) of each file, sorted by name.

    Args:
        files: local paths, which are looked up, or what a listing said.

    Raises:
        DataError: a file is missing or cannot be reached.
    """
    facts = [file if isinstance(file, Facts) else _look_up(file) for file in files]
    # By URI: a glob may name a file twice, and listings come in the order of the file system.
    described = {file.uri: [file.uri, file.bytes, file.modified_ns] for file in facts}
    return [described[uri] for uri in sorted(described)]


def _look_up(path: Path) -> Facts:
    facts = LOCAL.place(str(path.absolute())).facts()
    if facts is None:
        raise DataError(f"{path}: cannot be reached: no such file; restore the file")
    return facts


def fingerprint(parts: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, as 64 hexadecimal digits; the order of keys does not matter."""
    # Keys sorted, for a fingerprint must not depend on the order in which a release fills its dictionaries.
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
