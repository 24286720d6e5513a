"""Files that Caffe's programs and ours exchange, written whole or not at all."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sparknet.errors import NetError
from sparknet.whole_files import whole_file

__all__ = ["written_whole"]


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Generator[Path]:
    """Give an empty file beside `path`; what was written there gets its name on leaving without error.

    Raises:
        NetError: the file cannot be written (no such folder, no right, disk full); nothing is left behind.
    """
    target = Path(path)
    try:
        with whole_file(target) as draft:
            yield draft
    except IsADirectoryError as error:
        raise NetError(f"{target} cannot be written: it is a directory; give the name of a file") from error
    except OSError as error:
        raise NetError(
            f"{target} cannot be written: {error.strerror or error}; "
            "the folder must exist, be writable and have room"
        ) from error
