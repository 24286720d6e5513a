"""The environment that a run needs, as an archive that Spark unpacks beside each of its workers."""

import contextlib
import fnmatch
import json
import sys
from collections.abc import Generator, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import sparknet
from sparknet.errors import MissingDependency, RunDirError, UsageError
from sparknet.whole_files import whole_file

__all__ = ["SUFFIXES", "pack_environment"]

SUFFIXES = (".tar.gz", ".tgz")
"""Ends of archives that Spark unpacks by the system's tar; of a .tar or .zip its Java code refuses links that lead
outside, as an interpreter's does, or drops the rights to execute."""
_LEFT_OUT = (
    "*/__pycache__/*",
    # Workers run in Spark's own Java machines; half a gigabyte.
    "*/site-packages/pyspark/jars/*",
)
_OURS = (
    "*/site-packages/__editable__*sparknet*",
    "*/site-packages/sparknet/*",
    "*/sparknet-*.dist-info/direct_url.json",
)

_SOURCE = Path(sparknet.__file__).resolve().parent.parent


def pack_environment(path: Path, *, leave_out: Sequence[str] = (), level: int = 4) -> None:
    """Pack the environment of this process: a virtual environment, or conda's.

    Args:
        path: the archive; its end is one of `SUFFIXES`.
        leave_out: further files not to take, by patterns of their paths in the environment, where `*` is anything.
        level: of compression, 0 (none, the quickest) to 9.

    Raises:
        UsageError: the path ends otherwise; this Python is in no environment of its own; or a package, other than
            this one, is installed in editable form.
        MissingDependency: venv-pack or conda-pack is not installed.
        RunDirError: the archive cannot be written.
    """
    if not path.name.endswith(SUFFIXES):
        raise UsageError(
            f"{path} is no archive that Spark unpacks; its name must end in {', '.join(SUFFIXES)}: name it so"
        )
    prefix = Path(sys.prefix)
    packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    _refuse_editable(prefix / packages)
    environment, file_kind = _conda(prefix) if (prefix / "conda-meta").is_dir() else _venv(prefix)
    without = [*_LEFT_OUT, *_OURS, *leave_out]
    files = [file for file in environment.files if not any(fnmatch.fnmatch(file.target, one) for one in without)]
    # As it is imported here: an editable installation is a path, which the workers have not.
    environment.files = files + [
        file_kind(str(source), target)
        for source, target in _own_files(packages)
        if not any(fnmatch.fnmatch(target, one) for one in leave_out)
    ]
    try:
        with whole_file(path) as draft:
            # The draft's own name tells nothing of the format.
            environment.pack(output=str(draft), format="tar.gz", force=True, compress_level=level)
    except OSError as error:
        raise RunDirError(f"{path}: cannot be written: {error.strerror or error}; name another place") from error


def _own_files(packages: str) -> Generator[tuple[Path, str]]:
    """This package's files, and where they go."""
    package = Path(sparknet.__file__).parent
    for source in sorted(package.rglob("*")):
        if source.is_file() and "__pycache__" not in source.parts:
            yield source, f"{packages}/sparknet/{source.relative_to(package).as_posix()}"


def _venv(prefix: Path) -> tuple[Any, Any]:
    """The files of a virtual environment, and the type of one of them."""
    if sys.prefix == sys.base_prefix:
        raise UsageError(
            f"{sys.executable} is in no environment of its own; what is packed is a virtual environment or one of "
            "conda: make one (python -m venv DIR), install sparknet there, and call its sparknet"
        )
    try:
        from venv_pack import core
    except ImportError as error:
        raise MissingDependency(_missing("venv-pack")) from error
    # Ours is added whole, and the others were refused; unlike conda-pack, it has no switch for that.
    before = core.check_no_editable_packages
    core.check_no_editable_packages = lambda context: None  # pyright: ignore[reportUnknownLambdaType]
    try:
        return core.Env(str(prefix)), core.File
    except core.VenvPackException as error:
        raise UsageError(f"{prefix} cannot be packed: {error}") from error
    finally:
        core.check_no_editable_packages = before


def _conda(prefix: Path) -> tuple[Any, Any]:
    """The files of a conda environment, and a maker of one of them."""
    try:
        from conda_pack import core  # pyright: ignore
    except ImportError as error:
        raise MissingDependency(_missing("conda-pack")) from error
    try:
        return core.CondaEnv.from_prefix(str(prefix), ignore_editable_packages=True), core.File
    except core.CondaPackException as error:
        raise UsageError(f"{prefix} cannot be packed: {error}") from error


def _missing(name: str) -> str:
    return f"packing this environment needs {name}: {sys.executable} -m pip install 'sparknet[pack]'"


def _refuse_editable(packages: Path) -> None:
    names = [one.metadata["Name"] for one in distributions() if _is_editable(one)]
    others = [name for name in names if name.lower() != "sparknet"] + list(_paths_elsewhere(packages))
    if others:
        raise UsageError(
            f"{', '.join(sorted(others))}: installed in editable form, as a path, which workers have not; install "
            "it without -e"
        )


def _paths_elsewhere(packages: Path) -> Generator[str]:
    """What older tools have written for editable packages: lines that are directories outside the environment."""
    for file in packages.glob("*.pth"):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            place = (packages / line).resolve()
            # Other lines are code and comments; and ours is packed.
            if line and place.is_dir() and not place.is_relative_to(sys.prefix) and place != _SOURCE:
                yield line


def _is_editable(package: Distribution) -> bool:
    text = package.read_text("direct_url.json")
    with contextlib.suppress(ValueError):  # a file that others wrote
        return bool(json.loads(text or "{}").get("dir_info", {}).get("editable"))
    return False
