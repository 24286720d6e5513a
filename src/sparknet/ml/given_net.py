"""What a program may give for a net or a loss, and what becomes of it in a configuration."""

import functools
import hashlib
import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyspark import cloudpickle
from torch import nn

from sparknet.caffe import zoo
from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.caffe.prototxt import format_text
from sparknet.errors import ConfigError
from sparknet.ml.code_digest import digest_of_code
from sparknet.training.objectives.find_net import has_lazy_parameters
from sparknet.training.objectives.given_code import Code, NetInstance, reference_to
from sparknet.training.run_files.state_bytes import weights_file

__all__ = ["GivenNet", "check_pickles", "named", "net_from"]

_PIECE_BYTES = 4 << 20


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class GivenNet:
    """A net as a configuration has it, and what goes beside that."""

    section: Mapping[str, Any]
    """Keys of section `net`."""
    code: Code = field(default_factory=dict[str, Callable[..., Any]])
    """What a program gave, by the name in the configuration."""
    module: nn.Module | None = None
    """A module whose weights are the initial ones."""


def net_from(given: object) -> GivenNet:
    """What a program gave for a net.

    Args:
        given: an entry of the zoo or `package.module:callable`, the path of a prototxt or its text, a description,
            a module, or a callable that returns one.

    Raises:
        ConfigError: it is something else, or cannot travel to the workers.
    """
    if isinstance(given, str | Path):
        text = str(given)
        is_name = text in zoo.__all__ or (":" in text and "{" not in text and not Path(text).exists())
        # A single misspelt word is no file's name: the nearest entry of the zoo is told of.
        is_file = "{" in text or "/" in text or text.endswith((".prototxt", ".pbtxt", ".txt"))
        return GivenNet(section={"name" if is_name or not is_file else "prototxt": text})
    if isinstance(given, NetSpec):
        return GivenNet(section={"prototxt": format_text(given.parameters)})
    if isinstance(given, CaffeNet):
        raise ConfigError(
            "net is a CaffeNet; it is built anew for training: give its NetSpec or prototxt, and its weights as "
            "config={'net.weights': PATH}"
        )
    if isinstance(given, nn.Module):
        if has_lazy_parameters(given):
            raise ConfigError(
                f"net is a {type(given).__name__} with lazy parameters, which have no values yet: call it with a "
                "batch first, or give the class or a function that builds it"
            )
        try:
            instance = NetInstance(given)
            cloudpickle.dumps(instance)
        except Exception as error:  # as of `check_pickles`
            raise _refusal("net", given, error) from error
        # Other weights are another run, and so is another form.
        name = f"{reference_to(given)}()#{digest_of_code(given, _digest(given))}"
        return GivenNet(section={"name": name}, code={name: instance}, module=given)
    if callable(given):
        name, code = named("net", given)
        return GivenNet(section={"name": name}, code=code)
    raise ConfigError(
        f"net is {given!r}; it must be the name of a net in the zoo, the path of a prototxt, a NetSpec, a "
        "torch.nn.Module, or a callable that returns one"
    )


def _digest(module: nn.Module) -> str:
    """A short name for a module's weights."""
    found = hashlib.sha256()
    for piece in weights_file(module).pieces(_PIECE_BYTES):
        found.update(piece)
    return found.hexdigest()[:16]


def named(param: str, given: Callable[..., Any]) -> tuple[str, Code]:
    """The name of a callable in a configuration, and the code that must go beside it.

    Args:
        param: what it was given for, for messages.
        given: what any process can import goes by its name alone.

    Raises:
        ConfigError: it cannot travel to the workers.
    """
    inner = given
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = reference_to(inner)
    if inner is given and _imported(name) is given:
        return name, {}
    check_pickles(param, given)
    # Its code is part of its name: a net or loss that was changed is another, and so is one with other arguments.
    name = f"{name}{'' if inner is given else '(...)'}#{digest_of_code(param, given)}"
    return name, {name: given}


def _imported(name: str) -> object:
    """What another process finds under the name; None: nothing, or not the same."""
    module_name, _, path = name.partition(":")
    # A worker's own program is another one.
    if module_name == "__main__" or "<" in path or "." in path:
        return None
    with suppress(Exception):  # a module of the user's: it may fail in any way
        return getattr(importlib.import_module(module_name), path, None)
    return None


def check_pickles(param: str, given: object) -> None:
    """Find out here, and not in Spark's words, that something cannot travel to the workers.

    Args:
        param: what it was given for.
        given: what travels.

    Raises:
        ConfigError: naming the attribute that does not.
    """
    try:
        cloudpickle.dumps(given)
    except Exception as error:  # whatever an object of the user's raises
        raise _refusal(param, given, error) from error


def _refusal(param: str, given: object, error: Exception) -> ConfigError:
    where, what = _culprit(given)
    return ConfigError(
        f"{param}{where} is {what}, which cannot travel to the workers ({type(error).__name__}: {error}): make "
        "it where it is used, in forward or in the function, leave it out, or give the class or a function "
        "that builds the net"
    )


def _culprit(given: object) -> tuple[str, str]:
    """The innermost attribute that does not pickle, as `.a.b`, and its type."""
    path, found = "", given
    seen = {id(given)}
    while True:
        for step, inner in _parts_of(found):
            if id(inner) not in seen and not _pickles(inner):
                seen.add(id(inner))
                path, found = path + step, inner
                break
        else:
            return path, type(found).__name__


def _parts_of(given: Any) -> list[tuple[str, object]]:
    if isinstance(given, functools.partial):
        return [(".func", given.func), *((f".{name}", value) for name, value in given.keywords.items())]
    if isinstance(given, Mapping):
        return [(f"[{key!r}]", value) for key, value in given.items()]
    if isinstance(given, list | tuple | set | frozenset):
        return [(f"[{at}]", value) for at, value in enumerate(given)]
    parts: list[tuple[str, object]] = []
    if hasattr(given, "__code__"):
        cells = zip(given.__code__.co_freevars, given.__closure__ or (), strict=True)
        parts += [(f"'s variable {name}", cell.cell_contents) for name, cell in cells]
        used = set(given.__code__.co_names)
        parts += [(f"'s {name}", value) for name, value in given.__globals__.items() if name in used]
    if isinstance(given, nn.Module):
        parts += [(f".{name}", child) for name, child in given.named_children()]
    own = {name: value for name, value in getattr(given, "__dict__", {}).items() if not name.startswith("__")}
    return parts + [(f".{name}", value) for name, value in own.items() if not name.startswith("_modules")]


def _pickles(value: object) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:  # as above: this only asks
        return False
    return True
