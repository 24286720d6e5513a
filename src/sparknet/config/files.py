"""Reading a run's configuration from TOML, overriding single keys, and writing it back."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import tomli_w

from sparknet.config.codec import decode, encode
from sparknet.config.schema import RunConfig
from sparknet.errors import ConfigError
from sparknet.whole_files import whole_file

__all__ = ["config_from", "load_config", "override", "sections_from", "write_config"]

T = TypeVar("T")


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a TOML file and apply `section.key=value` overrides in order.

    Raises:
        ConfigError: the file is missing or no TOML, or a key or value is refused; the message names the file
            and the key (or, for a syntax error, the line).
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a TOML configuration") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; give a readable UTF-8 TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}; correct that line") from error
    try:
        config = decode(RunConfig, tables)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return override(config, overrides)


def override(config: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """Apply `section.key=value` settings; values are TOML, and bare words count as text.

    An empty value (`run.rounds=`) returns the key to its default.

    Raises:
        ConfigError: the setting has another form, or names an unknown key, or its value breaks a rule.
    """
    return config_from(encode(config), overrides)


def config_from(tables: Mapping[str, Any], overrides: Iterable[str] = ()) -> RunConfig:
    """Build a run's configuration from tables, with settings as `override` takes them.

    Raises:
        ConfigError: the setting has another form, or names an unknown key, or a value breaks a rule.
    """
    return sections_from(RunConfig, tables, overrides)


def sections_from(kind: type[T], tables: Mapping[str, Any], overrides: Iterable[str] = ()) -> T:
    """Build what needs some sections of a configuration, for example a `Cluster` alone.

    Args:
        kind: a dataclass with a field for each section, of the section's name.
        tables: the sections' keys.
        overrides: settings as `override` takes them.

    Raises:
        ConfigError: the setting has another form, or names an unknown key, or a value breaks a rule.
    """
    # Copies: the settings go into the tables, and those are the caller's.
    changed: dict[str, Any] = {
        name: {**table} if isinstance(table, Mapping) else table for name, table in tables.items()
    }
    for setting in overrides:
        path, equals, text = setting.partition("=")
        keys = [key.strip() for key in path.split(".")]
        # One level at least: a section as a whole cannot be set, its other keys would be lost.
        if not equals or len(keys) < 2 or not all(keys):
            raise ConfigError(f"--set {setting!r}: the form is section.key=value, as in sync.local_steps=10")
        table = changed
        for key in keys[:-1]:
            inner: Any = table.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {setting!r}: {key} is a value, not a section")
            table = cast("dict[str, Any]", inner)
        if text.strip():
            table[keys[-1]] = _toml_value(text.strip())
        else:
            table.pop(keys[-1], None)
    # Decoded when all settings are in: rules between two keys must hold in the end, not after each of them.
    try:
        return decode(kind, changed)
    except ConfigError as error:
        raise ConfigError(f"--set: {error}" if overrides else str(error)) from error


def _toml_value(text: str) -> object:
    # A shell takes quotes away, so that text comes bare, as in net.name=lenet; codec's types judge what it came to.
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def write_config(config: RunConfig, path: Path) -> None:
    """Write the configuration as TOML that `load_config` reads back to an equal value, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as draft, draft.open("wb") as file:
        # Caffe's files stand in it as they were written, line by line.
        tomli_w.dump(encode(config), file, multiline_strings=True)
