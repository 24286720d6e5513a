"""What names a run directory: a path of this machine, or a URI of a store that can be written."""

import os
import re
from pathlib import Path

from sparknet.data.storage.place import Place, Storage
from sparknet.errors import DataError, UsageError

__all__ = ["run_place"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_STORES = frozenset({"s3", "s3a", "s3n", "hdfs", "viewfs", "gs", "gcs", "abfs", "abfss"})
_FORMS = "it must be a path, file:, s3://, hdfs://, gs:// or abfs://"


def run_place(where: str | Path, *, s3_endpoint: str = "") -> Place:
    """The place of a run directory; nothing is looked up yet.

    Args:
        where: a path or URI; a URI as text, since a `Path` loses one of its slashes.
        s3_endpoint: as `Storage` has it.

    Raises:
        UsageError: it is neither, or a URI that holds credentials or names no bucket.
    """
    text = os.fspath(where)
    found = _SCHEME.match(text)
    scheme, slashes = (found[1].lower(), found[2]) if found else ("file", "//")
    # `a:b` is a good name of a directory; `s3:/bucket` would be one too, and nobody means it.
    if scheme in _STORES and not slashes:
        rest = text[len(scheme) + 1 :].lstrip("/")
        raise UsageError(f"the run directory is {text!r}; {_FORMS}, with two slashes: write {scheme}://{rest}")
    if slashes and scheme not in _STORES | {"file"}:
        # Without the rest, in which there may be a password.
        raise UsageError(f"the run directory is a {scheme}:// URI; {_FORMS}: name one of these")
    if not text:
        raise UsageError(f"the run directory is empty; {_FORMS}: name one of these")
    try:
        return Storage(s3_endpoint=s3_endpoint).place(text)
    except DataError as error:
        raise UsageError(f"the run directory: {error}") from error
