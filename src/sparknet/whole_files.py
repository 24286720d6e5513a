"""Files and directories that appear whole or not at all.

What is being written lies beside its place under a hidden name, `.NAME.<hex>.part`, and is renamed when all of it
is on the disk. A directory that is replaced is called `.NAME.<hex>.old` between the two renames. A process that is
killed leaves such names behind; `tidy` puts them right.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["tidy", "whole_directory", "whole_file"]

_LEFT = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.(?P<kind>part|old)")
_NO_SUCH_PROMISE = (errno.EINVAL, errno.ENOTSUP)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Generator[Path]:
    """Give an empty file beside `path` to write; it gets its name, and replaces a file of it, on leaving.

    The block must have closed it by then. Its mode is that of any new file: what the umask leaves of 0666.
    Where the block raises, or the file cannot be finished, nothing of it is left and what was there stays.

    Raises:
        OSError: it cannot be written (no such folder, no right, disk full), or `path` is a directory.
    """
    target = Path(path)
    if not target.name or target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    draft = _beside(target, "part")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    mode = draft.stat().st_mode
    try:
        yield draft
        _set_mode(draft, mode)
        # a disk may refuse the last bytes only here, and a crash must not leave the name without the bytes
        _flush(draft)
        draft.rename(target)
    except BaseException:
        _remove(draft)
        raise
    _flush(target.parent)


@contextmanager
def whole_directory(path: str | os.PathLike[str], *, replace: bool = True) -> Generator[Path]:
    """Give an empty directory beside `path` to fill; it gets its name on leaving.

    The block must have closed what it wrote there by then. The modes are what the umask leaves of 0777, and of 0666
    for files. Where the block raises, or the directory cannot be finished, nothing of it is left and what was there
    stays.

    Args:
        path: of the directory; the folder that it lies in must exist.
        replace: take the place of a directory with something in it, which is then gone.

    Raises:
        OSError: it cannot be written, `path` is a file, or it is a directory with something in it and that may not
            be replaced.
    """
    target = Path(path)
    draft = _beside(target, "part")
    draft.mkdir(mode=0o777)
    mode = draft.stat().st_mode
    try:
        yield draft
        for place in (*draft.rglob("*"), draft):
            _set_mode(place, mode if place.is_dir() else mode & ~0o111)
            _flush(place)
        if replace:
            _put_in_place(draft, target)
        else:
            draft.rename(target)  # which an empty directory alone gives way to
    except BaseException:
        _remove(draft)
        raise
    _flush(target.parent)


def tidy(directory: str | os.PathLike[str]) -> None:
    """Remove the drafts that a killed process left in `directory`, and give a directory set aside its name back.

    Nobody else may be writing there meanwhile.

    Raises:
        OSError: the directory cannot be listed, or what was set aside cannot be put back.
    """
    directory = Path(directory)
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        left = _LEFT.fullmatch(path.name)
        if left is None:
            continue
        if left["kind"] == "old" and not (directory / left["name"]).exists():
            path.rename(directory / left["name"])
        else:
            _remove(path)


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.{kind}")


def _put_in_place(draft: Path, target: Path) -> None:
    """Rename `draft`; the old directory is out of the way meanwhile and back where that fails."""
    if not target.exists():
        draft.rename(target)
        return
    if not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    aside = _beside(target, "old")
    target.rename(aside)
    try:
        draft.rename(target)
    except BaseException:
        if not target.exists():  # an interrupt may come when the new one has its name already
            aside.rename(target)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    """What cannot be removed only takes room: how it went before is what the caller must hear of."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _set_mode(path: Path, mode: int) -> None:
    """Give a file the rights of one that was made here, whoever made it.

    Libraries write a temporary file of their own and rename it (safetensors does), which the owner alone may read.
    """
    if stat.S_IMODE(path.stat().st_mode) != stat.S_IMODE(mode):
        path.chmod(stat.S_IMODE(mode))


def _flush(path: Path) -> None:
    """Have the bytes of a file, or the names in a directory, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SUCH_PROMISE or not path.is_dir():  # some file systems have none for directories
            raise
    finally:
        os.close(handle)
