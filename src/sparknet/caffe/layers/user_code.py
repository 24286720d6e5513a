"""The code of Python layers: found as Caffe finds it, and called so that errors name its own lines."""

import importlib
import importlib.machinery
import os
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sparknet.caffe import pycaffe
from sparknet.caffe.pycaffe import caffe_pb2, io
from sparknet.caffe.schema import LayerParameter
from sparknet.errors import NetError

__all__ = ["call", "find_layer"]

_OURS = str(Path(__file__).parents[2])
_LIBRARIES = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def find_layer(parameters: LayerParameter, path: Sequence[str]) -> type[pycaffe.Layer]:
    """The class that a layer of type Python names; its module is imported, which runs it.

    The module is looked for in PYTHONPATH, then in `path`, then where Python looks itself. All these stay on
    `sys.path`: what the module imports later is found too.

    Args:
        parameters: the layer's description.
        path: directories.

    Raises:
        NetError: `python_param` names none, there is no such module or class, or importing it fails.
    """
    given = parameters.python_param
    if not given.module or not given.layer:
        raise NetError(
            f"python_param has module {given.module!r} and layer {given.layer!r}; both must be given: the module "
            "and the class in it"
        )
    module = _module(given.module, path)
    found = getattr(module, given.layer, None)
    if not isinstance(found, type) or not issubclass(found, pycaffe.Layer):
        classes = [name for name, value in vars(module).items() if _is_layer(value)]
        raise NetError(
            f"module {given.module} ({module.__file__}) has no class {given.layer!r} that derives from "
            f"caffe.Layer; it has {', '.join(classes) or 'none'}: correct python_param"
        )
    return found


def call(layer: pycaffe.Layer, method: str, *arguments: Any) -> None:
    """Call a method of a layer.

    Raises:
        NetError: it raises anything; the message gives file and line of the user's own code.
    """
    try:
        getattr(layer, method)(*arguments)
    except Exception as error:  # the code is the user's: it may fail in any way
        kind = type(layer)
        raise NetError(f"{kind.__name__}.{method}: {_told(error, sys.modules[kind.__module__])}") from error


def _is_layer(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, pycaffe.Layer) and value is not pycaffe.Layer


def _module(name: str, path: Sequence[str]) -> ModuleType:
    _answer_caffe()
    places = _search_path(path)
    _check_same(name, places)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name or (error.name and name.startswith(f"{error.name}.")):
            where = ", ".join([*_python_path(), *path]) or "nowhere"
            raise NetError(
                f"its module {name!r} is not in PYTHONPATH, the current directory or beside the net's file (looked "
                f"in {where}): put its directory on PYTHONPATH, on every worker's machine"
            ) from error
        raise NetError(f"importing its module {name}: {_told(error, None)}: pip install {error.name}") from error
    except Exception as error:  # the module is the user's: it may fail in any way
        raise NetError(f"importing its module {name}: {_told(error, None)}") from error


def _answer_caffe() -> None:
    """Let `import caffe` find what is here of pycaffe."""
    # Also where pycaffe is installed: the layers that it can make are made within Caffe alone.
    present = sys.modules.setdefault("caffe", pycaffe)
    if present is not pycaffe:
        raise NetError(
            f"{getattr(present, '__file__', 'pycaffe')} is imported in this process as caffe, and a Python layer "
            "needs the caffe.Layer of SparkNet: build the net in a process that does not import it"
        )
    proto = sys.modules.setdefault("caffe.proto", ModuleType("caffe.proto"))
    # Both by attribute and by import, as `caffe.proto.caffe_pb2` is written.
    proto.__dict__["caffe_pb2"] = caffe_pb2
    pycaffe.__dict__["proto"] = proto
    sys.modules |= {"caffe.io": io, "caffe.proto.caffe_pb2": caffe_pb2}


def _python_path() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _search_path(path: Sequence[str]) -> list[str]:
    """Where a module is looked for, in order; what Python does not know of it yet, it learns."""
    first = _python_path()
    behind = max((at + 1 for at, entry in enumerate(sys.path) if entry in first), default=0)
    new = [entry for entry in path if entry not in sys.path]
    sys.path[behind:behind] = new
    return list(dict.fromkeys([*first, *path, *sys.path]))


def _check_same(name: str, places: list[str]) -> None:
    """Refuse a module that another one of its name, of another net, stands for already."""
    top = name.partition(".")[0]
    loaded = sys.modules.get(top)
    spec = importlib.machinery.PathFinder.find_spec(top, places) if loaded is not None else None
    known = getattr(loaded, "__file__", None)
    if spec is not None and spec.origin and known and not _same_file(spec.origin, known):
        raise NetError(
            f"its module {name!r} is {spec.origin}, and this process has {known} under that name: rename one of "
            "them, or use a process for each"
        )


def _same_file(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def _told(error: Exception, module: ModuleType | None) -> str:
    """What was raised, and on which line of the user's code."""
    # Of a file, and not of text that the layer evaluates, as published ones do with their parameters.
    if isinstance(error, SyntaxError) and Path(error.filename or "").is_file():
        return (
            f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}: correct it; a module of "
            "Python 2 is brought to Python 3 by hand or by a tool such as 2to3"
        )
    frames = traceback.extract_tb(error.__traceback__)
    # What the user wrote, however deep in a library it failed; code that is installed counts as his where it is
    # the layer's own module.
    own = getattr(module, "__file__", None)
    theirs = [frame for frame in frames if frame.filename == own or _is_users(frame.filename)]
    where = f"{theirs[-1].filename}:{theirs[-1].lineno}: " if theirs else ""
    return f"{where}{type(error).__name__}: {error}{_remedy(error)}"


def _is_users(filename: str) -> bool:
    return not filename.startswith((_OURS, "<", *_LIBRARIES))


def _remedy(error: Exception) -> str:
    if isinstance(error, ValueError) and "read-only" in str(error):
        return (
            ": a layer may not write into its bottoms, which others read: take a copy of the data, or give the "
            "layer's top the name of its bottom"
        )
    return ""
