"""Files that are written whole or not at all."""

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from sparknet.errors import NetError

__all__ = ["written_whole"]


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Generator[Path]:
    """Give a temporary name in the folder of `path`; what was written there gets its name on leaving without error.

    Raises:
        NetError: the file cannot be written (no such folder, no right, disk full); nothing is left behind.
    """
    target = Path(path)
    draft = target.with_name(f".{secrets.token_hex(4)}.{target.name}") if target.name else target
    try:
        if not target.name or target.is_dir():
            raise NetError(f"{target} cannot be written: it is a directory; give the name of a file")
        yield draft
        with draft.open("rb+") as file:
            # a disk may refuse the last bytes only here, and a crash must not leave the name without the bytes
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        raise NetError(
            f"{target} cannot be written: {error.strerror or error}; "
            "the folder must exist, be writable and have room"
        ) from error
    finally:
        if target.name:
            with suppress(OSError):  # where it could not be made, for its name is too long, say
                draft.unlink()
