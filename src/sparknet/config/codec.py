"""Frozen dataclasses ↔ plain dictionaries, strictly: the one codec behind TOML files and wire messages."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from sparknet.errors import ConfigError

__all__ = ["decode", "encode"]

T = TypeVar("T")


def encode(value: object) -> Any:
    """Turn a dataclass into dictionaries, lists and scalars; fields that are None are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        # TOML has no word for None: a key that is not there says it, and `decode` gives its default back.
        return {name: encode(item) for name, item in pairs if item is not None}
    if isinstance(value, Mapping):
        # JSON and TOML have keys of text alone; whoever has others turns them back.
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(cls: type[T], values: object, *, where: str = "") -> T:
    """Build a `cls` from a dictionary, refusing unknown keys, missing keys and wrong types.

    Args:
        cls: a dataclass whose fields are scalars, literals, dataclasses, tuples and dictionaries of these, or Any.
        values: what TOML or JSON gave.
        where: the dotted path of this value for error messages, for example `sync`.

    Raises:
        ConfigError: naming the key, the value, the rule and, for a misspelt key, the nearest known one.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the configuration'} is {values!r}; it must be a table of keys")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in fields:
            raise ConfigError(f"{path} is not a known key; {_nearest(str(key), list(fields))}")
        arguments[key] = _convert(hints[key], value, path)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            path = f"{where}.{name}" if where else name
            raise ConfigError(f"{path} is missing; it has no default: set {path}")
    return cls(**arguments)


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"


def _convert(hint: Any, value: object, path: str) -> Any:
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast("type[Any]", hint), value, where=path)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{path} is {value!r}; it must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (types.UnionType, typing.Union):
        return _union(arguments, value, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path} is {value!r}; it must be a list")
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} is {value!r}; it must be a table")
        return {str(key): _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    return _scalar(hint, value, path)


def _union(members: tuple[Any, ...], value: object, path: str) -> Any:
    inner = [member for member in members if member is not type(None)]
    if value is None and len(inner) < len(members):
        return None
    if len(inner) == 1:
        return _convert(inner[0], value, path)
    if isinstance(value, Mapping):
        tables = [member for member in inner if dataclasses.is_dataclass(member)]
        if tables:
            return decode(typing.cast("type[Any]", tables[0]), value, where=path)
    # By the exact type and not isinstance: true is an int to Python, and would pass for 1.
    if type(value) not in inner:
        names = ", ".join(_NAMES.get(kind, "a table") for kind in inner)
        raise ConfigError(f"{path} is {value!r}; it must be one of: {names}")
    return value


_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    bool: "true or false",
}


def _scalar(hint: Any, value: object, path: str) -> Any:
    # A whole number stands for a float, as people write 1 for 1.0, but true stands for no number.
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{path} is {value!r}; it must be {_NAMES.get(hint, hint.__name__)}")
    return value
