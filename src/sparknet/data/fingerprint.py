"""Knowing a source again: files by name, size and time of change."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparknet.errors import DataError

__all__ = ["describe_files", "fingerprint"]


def describe_files(paths: Iterable[Path]) -> list[list[str | int]]:
    """Absolute name, bytes and time of change (nanoseconds) of each file, sorted by name.

    Raises:
        DataError: a file is missing or cannot be reached.
    """
    described: list[list[str | int]] = []
    for path in sorted({path.absolute() for path in paths}):
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be reached: {error}; restore the file") from error
        described.append([str(path), status.st_size, status.st_mtime_ns])
    return described


def fingerprint(parts: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, as 64 hexadecimal digits; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
