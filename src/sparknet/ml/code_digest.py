"""Whether two pieces of code are the same one: a digest that another process of the same Python makes too."""

import functools
import hashlib
import types
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet

from torch import nn

__all__ = ["digest_of_code"]


def digest_of_code(*given: object) -> str:
    """Sixteen digits that differ where the code of functions, classes or modules does, or what they were given.

    Names of lines and files play no part: a cell that is run again is the same code. Values that have no text of
    their own count by their type.
    """
    found = hashlib.sha256()
    for one in given:
        for piece in _pieces(one, set()):
            found.update(piece.encode())
            found.update(b"\0")
    return found.hexdigest()[:16]


def _pieces(given: object, seen: set[int]) -> Iterator[str]:
    if id(given) in seen:  # a function that calls itself, a class in its own method's closure
        return
    seen.add(id(given))
    yield type(given).__name__
    yield from _of(given, seen)


def _all(given: Iterable[object], seen: set[int]) -> Iterator[str]:
    for one in given:
        yield from _pieces(one, seen)


@functools.singledispatch
def _of(given: object, seen: set[int]) -> Iterator[str]:
    """What makes up a value: here, of those that have no text of their own, nothing."""
    del seen
    if given is None or isinstance(given, bool | int | float | complex | str | bytes):
        yield repr(given)


@_of.register
def _(given: functools.partial, seen: set[int]) -> Iterator[str]:  # pyright: ignore[reportMissingTypeArgument]
    yield from _all((given.func, given.args, given.keywords), seen)


@_of.register
def _(given: types.CodeType, seen: set[int]) -> Iterator[str]:
    yield given.co_code.hex()
    yield " ".join(given.co_names)
    yield from _all(given.co_consts, seen)


@_of.register
def _(given: types.FunctionType, seen: set[int]) -> Iterator[str]:
    yield from _all((given.__code__, given.__defaults__, given.__kwdefaults__), seen)
    yield from _all([cell.cell_contents for cell in given.__closure__ or ()], seen)


@_of.register
def _(given: nn.Module, seen: set[int]) -> Iterator[str]:
    # Its structure with what its layers were given, and the code of each that is not torch's.
    yield repr(given)
    yield from _all([type(part) for part in given.modules()], seen)


@_of.register(dict)
def _(given: dict[object, object], seen: set[int]) -> Iterator[str]:
    yield from map(str, given)
    yield from _all(given.values(), seen)


@_of.register(list)
@_of.register(tuple)
def _(given: Sequence[object], seen: set[int]) -> Iterator[str]:
    yield from _all(given, seen)


@_of.register(set)
@_of.register(frozenset)
def _(given: AbstractSet[object], seen: set[int]) -> Iterator[str]:
    del seen
    yield from sorted(map(repr, given))


@_of.register
def _(given: type, seen: set[int]) -> Iterator[str]:
    yield f"{given.__module__}:{given.__qualname__}"
    # What is installed changes with its version alone.
    if given.__module__.partition(".")[0] in ("torch", "builtins", "torchmetrics"):
        return
    for base in given.__bases__:
        yield from _pieces(base, seen)
    for name, value in sorted(vars(given).items()):
        if name not in ("__module__", "__qualname__", "__doc__"):
            yield name
            yield from _pieces(getattr(value, "__func__", None) or getattr(value, "fget", None) or value, seen)
