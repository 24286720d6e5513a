"""What an error of a worker tells: in a line, where in the user's code it came from, and in full.

Whether a next attempt can help is decided by kind. What this package raises on purpose says so itself: a
`ClusterError` may be gone a moment later, any other is wrong for every worker. Of what Python raises, an error of
the system's (a connection, a file, memory) may be gone too. What comes out of the user's code otherwise is a fault
in it, which is met again at every attempt, although perhaps only after some rounds.
"""

import functools
import linecache
import sys
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from sparknet.errors import ClusterError, SparkNetError

__all__ = ["Cause", "cause_of"]

_MOST_LETTERS = 20_000
"""Of a trace; its end says what happened."""
_MOST_LINE = 120
_PASSING = (OSError, MemoryError, torch.OutOfMemoryError)
"""Python's kinds of error that say nothing of the code: those of connections and times that are up are OSErrors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """Why a worker failed."""

    text: str
    """In a line; with the place, if there is one."""
    fatal: bool
    """No attempt of any worker can help."""
    place: str = ""
    """The innermost line of the user's own code that the error went through, where the code is at fault."""
    trace: str = ""
    """As Python prints it; empty where the text says all."""


def cause_of(error: BaseException) -> Cause:
    """Look into an error that ended a worker."""
    if isinstance(error, SparkNetError):
        # The message says all, but for where it came from if code of the user's is behind it.
        first = _first_cause(error)
        place = _place_of(first) if first is not error else ""
        text = f"{error} ({place})" if place else str(error)
        fatal = not isinstance(error, ClusterError)
        return Cause(text=text, fatal=fatal, place=place, trace=_trace_of(error) if place else "")
    place = _place_of(error)
    text = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
    return Cause(
        text=f"{text} ({place})" if place else text,
        fatal=False,
        place="" if isinstance(error, _PASSING) else place,
        trace=_trace_of(error),
    )


def _first_cause(error: BaseException) -> BaseException:
    """What an error was made of, if anything."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _place_of(error: BaseException) -> str:
    """The innermost line of the user's own code that an error went through; empty: there is none."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        code = frame.f_code
        if _is_theirs(code.co_filename):
            text = linecache.getline(code.co_filename, line, frame.f_globals).strip()[:_MOST_LINE]
            return f"{code.co_filename}, line {line}, in {code.co_name}" + (f": {text}" if text else "")
    return ""


def _is_theirs(file: str) -> bool:
    # A notebook's cells are `<ipython-input-...>` or temporary files; `<frozen ...>` is Python's own.
    if file.startswith((*_homes(), "<frozen ", "<__array_function__")):
        return False
    return file.startswith(_SITE) or not file.startswith(_PYTHON)


@functools.cache
def _homes() -> tuple[str, ...]:
    """Where the code lies that a worker runs and that is not the user's."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in _PACKAGES]
    return tuple(f"{Path(file).parent}/" for file in files if file)


def _trace_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-_MOST_LETTERS:]


_PACKAGES = ("sparknet", "torch", "numpy", "pyarrow", "pyspark", "torchmetrics", "safetensors")
_PYTHON = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib"))
_SITE = tuple(f"{sysconfig.get_path(name)}/" for name in ("purelib", "platlib"))
