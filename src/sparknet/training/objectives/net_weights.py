"""Weights from files into any module, and parameters that stay as they are."""

import difflib
import fnmatch
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sparknet.errors import ConfigError, NetError

__all__ = ["LoadedWeights", "freeze", "load_module_weights"]

_TENSORS = (".safetensors", ".index.json")
_PICKLES = (".pt", ".pth", ".bin")
_INSIDE = ("state_dict", "model_state_dict", "model")
"""Where files of others keep the weights among other things."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedWeights:
    """What became of the weights of some files."""

    missing: tuple[str, ...]
    """Of the net, in no file: they keep their initial values."""
    unexpected: tuple[str, ...]
    """In a file and not of the net, or of another shape there: they were left out."""


def load_module_weights(
    module: nn.Module, paths: str, *, prefixes: Mapping[str, str], strict: bool
) -> LoadedWeights:
    """Load weights into a module, in place.

    Args:
        module: whose parameters and buffers are written.
        paths: safetensors, the `.index.json` of several of them, or `.pt` files, separated by commas; of a weight
            in several of them the last one counts.
        prefixes: which weights are taken, by how their names begin, and how the names begin in the net; none: all,
            by their own names.
        strict: weights that are missing (unless `prefixes` picks) or left over are an error.

    Raises:
        NetError: a file is missing or damaged, holds no weights, or they do not fit.
    """
    files: dict[str, Tensor] = {}
    for path in filter(None, map(str.strip, paths.split(","))):
        files |= _read(Path(path))
    _check_prefixes(prefixes, files, paths)
    found = dict(_picked(files, prefixes))
    own = module.state_dict()
    fitting = {name: tensor for name, tensor in found.items() if name in own and tensor.shape == own[name].shape}
    loaded = LoadedWeights(
        missing=tuple(name for name in own if name not in fitting and not _shared(name, own, fitting)),
        unexpected=tuple(name for name in found if name not in fitting),
    )
    if not fitting:
        raise NetError(
            f"net.weights is {paths}; none of its {len(found)} weights ({_some(found)}) is one of the net's "
            f"({_some(own)}): set net.weights_map to how names begin there and here"
        )
    if strict and (loaded.unexpected or (loaded.missing and not prefixes)):
        shapes = [
            f"{name} is {tuple(found[name].shape)} there and {tuple(own[name].shape)} here"
            for name in loaded.unexpected
            if name in own
        ]
        raise NetError(
            f"net.weights is {paths}; missing there: {_some(loaded.missing)}; left over: {_some(loaded.unexpected)}"
            f"{'; ' + shapes[0] if shapes else ''}: set net.weights_map, or net.weights_strict=false to leave "
            "them out"
        )
    module.load_state_dict(fitting, strict=False)
    return loaded


def freeze(module: nn.Module, patterns: tuple[str, ...]) -> None:
    """Let the parameters whose names fit one of the patterns stay as they are.

    Raises:
        ConfigError: a pattern fits none, or all are frozen.
    """
    parameters = dict(module.named_parameters())
    for pattern in patterns:
        fitting = fnmatch.filter(parameters, pattern)
        if not fitting:
            close = difflib.get_close_matches(pattern, parameters, n=1, cutoff=0.3)
            raise ConfigError(
                f"net.freeze has {pattern!r}, which fits no parameter; they are {_some(parameters)}"
                f"{f', and nearest is {close[0]}' if close else ''}: correct the pattern"
            )
        for name in fitting:
            parameters[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError(f"net.freeze is {list(patterns)}, which freezes every parameter: leave one to be trained")


def _shared(name: str, own: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> bool:
    """Whether it is the very tensor of another name, which is loaded: safetensors keeps one name of several."""
    return any(own[other].is_set_to(own[name]) for other in loaded)


def _check_prefixes(prefixes: Mapping[str, str], files: Mapping[str, Tensor], paths: str) -> None:
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in files):
            raise NetError(
                f"net.weights_map has {prefix!r}, with which no weight of {paths} begins; they are {_some(files)}: "
                "correct it"
            )


def _picked(tensors: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    if not prefixes:
        yield from tensors.items()
        return
    # The longest beginning that fits: an empty one takes the rest.
    ordered = sorted(prefixes, key=len, reverse=True)
    for name, tensor in tensors.items():
        prefix = next((one for one in ordered if name.startswith(one)), None)
        if prefix is not None:
            yield prefixes[prefix] + name.removeprefix(prefix), tensor


def _read(path: Path) -> dict[str, Tensor]:
    remedy = "give a .safetensors, .pt or, for a Caffe net, .caffemodel file"
    try:
        if path.name.endswith(".index.json"):
            parts = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
            # Each by itself, so that an error names the one that it is of.
            files = [_read(path.parent / part) for part in dict.fromkeys(parts)]
            return {name: tensor for file in files for name, tensor in file.items()}
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in _PICKLES:
            # Tensors and plain containers alone: a whole pickle may run anything.
            return _state_dict(torch.load(path, map_location="cpu", weights_only=True), path)
    except NetError:
        raise
    except FileNotFoundError as error:
        raise NetError(f"{error.filename or path}: no such file; {remedy}") from None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise NetError(f"{path}: cannot be read: {error}; {remedy}") from error
    except Exception as error:  # what unpickling meets in a damaged or foreign file may be anything
        # Torch's own message is advice to load it all the same; the cause stands behind it.
        reason = " ".join(str(error.__context__ or error).split())[:300]
        raise NetError(
            f"{path}: is no file of weights alone: {reason}; save the net's state_dict() with torch.save, or as "
            "safetensors"
        ) from error
    raise NetError(f"{path}: of weights {', '.join(_TENSORS + _PICKLES)} are read for this net; {remedy}")


def _state_dict(found: object, path: Path) -> dict[str, Tensor]:
    if isinstance(found, Mapping):
        values = cast("Mapping[str, Any]", found)
        for key in _INSIDE:
            if isinstance(values.get(key), Mapping):
                values = values[key]
        tensors = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise NetError(
        f"{path}: holds {type(found).__name__} without weights; save the net's state_dict() with torch.save"
    )


def _some(names: Mapping[str, object] | tuple[str, ...]) -> str:
    listed = list(names)
    return (", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")) or "none"
