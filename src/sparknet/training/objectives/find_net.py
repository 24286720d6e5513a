"""From a name in the configuration to an `nn.Module` with reproducible initial weights.

A net is either a description (`NetSpec`), as the zoo's are, and becomes a `CaffeNet`, from blobs to blobs; or it
is a module of the user's, from images to logits.
"""

import difflib
import importlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from sparknet.caffe import zoo
from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.layers import INPUT_LAYERS, InputBlob, Shape, input_blobs
from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import NetError
from sparknet.training.objectives.given_code import Code
from sparknet.training.objectives.losses import OWN
from sparknet.training.objectives.net_call import NetCall
from sparknet.training.objectives.recipe import Recipe, with_python_layers
from sparknet.training.objectives.seeding import drawing_from

__all__ = ["build_net", "find_net"]


def find_net(name: str, code: Code | None = None) -> Callable[..., nn.Module | NetSpec]:
    """Return the callable that a net's name stands for.

    Args:
        name: an entry of the zoo (`lenet`), or `package.module:callable` for a module class of yours or a function
            that returns a module or a description.
        code: what a program gave by name, which comes first.

    Raises:
        NetError: no such entry, the module cannot be imported, or it holds no such callable; the message
            gives the nearest name or the import's own error.
    """
    if code and name in code:
        return code[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        if name in zoo.__all__:
            return getattr(zoo, name)
        raise NetError(
            f"net.name is {name!r}; it is not in the zoo: {_nearest(name, zoo.__all__)} "
            f"A callable of yours is given as 'package.module:callable'"
        )
    if not module_name or not attribute:
        raise NetError(f"net.name is {name!r}; the form is 'package.module:callable', as in 'my_nets:build'")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's: it may fail in any way
        raise NetError(
            f"net.name is {name!r}; importing {module_name} failed: {type(error).__name__}: {error}: "
            f"correct the module, or put its directory on PYTHONPATH"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        if module_name == "__main__":
            raise NetError(
                f"net.name is {name!r}; a program or notebook defined it, and this one does not: "
                "define it here too, or give it again where the net is asked for"
            )
        fault = "has no such name" if found is None else f"holds a {type(found).__name__} there"
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise NetError(
            f"net.name is {name!r}; {module_name} {fault}; it must be a callable: {_nearest(attribute, known)}"
        )
    return cast("Callable[..., nn.Module | NetSpec]", found)


def build_net(recipe: Recipe, rows: RowSchema, *, seed: int) -> nn.Module:
    """Build a net on the CPU; the same name, arguments and seed give bit-identical weights.

    A description is built in phase TRAIN. Data layers whose files alone know the shape of an image take it from
    `input_shape`.

    The callable is given `input_shape` (of the first input), `input_shapes` (by column), `classes` (of the first
    target that has any) and `targets` (by column how many numbers a head for it has: classes, or numbers of a row)
    if its signature names them, and `arguments` besides, which win where both name a parameter. Lazy modules are
    made whole by a pass over zeros. The caller's random state stays as it is.

    Args:
        recipe: names it, and says whether the net computes its loss itself, of targets that it is given.
        rows: what the net is fed; classes are 0 to below `rows.label_bound`.
        seed: seeds torch's CPU generator for the initial weights.

    Raises:
        NetError: the net cannot be found, does not take these arguments or this input, fails while it is
            built, or is neither a description nor an `nn.Module`, or has no trainable parameter.
    """
    name = recipe.net.name
    factory = find_net(name, recipe.code)
    offered = {
        "input_shape": rows.input.shape,
        "input_shapes": {column.name: column.shape for column in rows.inputs},
        "classes": rows.label_bound,
        "targets": {column.name: column.classes or column.width for column in rows.targets},
    }
    given = _arguments(name, factory, recipe.net.arguments, offered)
    with drawing_from(seed):
        try:
            # Typed as object: what a callable of the user's really returns is checked below
            module = cast("object", factory(**given))
            if isinstance(module, NetSpec):
                module = with_python_layers(module, recipe.net)
                module = CaffeNet(module, "TRAIN", input_shapes=_missing_shapes(module, rows.input.shape))
            if isinstance(module, nn.Module) and has_lazy_parameters(module):
                _make_whole(module, rows, name=name, own_loss=recipe.objective.loss == OWN)
        except NetError:
            raise
        except Exception as error:  # the callable is the user's: it may fail in any way
            raise NetError(
                f"net {name}: building it with {_listed(given)} failed: {type(error).__name__}: {error}: "
                f"correct net.arguments or the callable"
            ) from error
    if not isinstance(module, nn.Module):
        raise NetError(
            f"net {name}: it returned a {type(module).__name__}; "
            f"it must return a torch.nn.Module or a NetSpec: correct the callable"
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise NetError(
            f"net {name}: the module has 0 trainable parameters; it must have at least one: "
            f"give it a layer with weights, or leave requires_grad on"
        )
    return module


def has_lazy_parameters(module: nn.Module) -> bool:
    """Tell whether some parameters or buffers wait for a first batch to know their shape."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return any(isinstance(tensor, UninitializedParameter | UninitializedBuffer) for tensor in tensors)


def _make_whole(module: nn.Module, rows: RowSchema, *, name: str, own_loss: bool) -> None:
    """Give lazy parameters their shapes by a pass over two rows of zeros."""
    call = NetCall(module, rows, name=name, with_targets=own_loss)
    # Two rows: BatchNorm takes no single one in training mode; and its statistics must not learn zeros.
    batch = {
        column.name: torch.zeros(
            (2, *column.shape), dtype=torch.int64 if column.dtype == "int64" else torch.float32
        )
        for column in rows.columns
    }
    module.eval()
    with torch.no_grad():
        call(batch)
    module.train()


def _missing_shapes(spec: NetSpec, row: Shape) -> dict[str, Shape]:
    """Shapes of the inputs for which the file gives none: a layer's first blob is images, the others are labels."""
    layers: dict[str, list[InputBlob]] = {}
    for layer in spec.select("TRAIN").parameters.layer:
        if layer.type in INPUT_LAYERS:
            layers[layer.name] = input_blobs(layer)
    missing: dict[str, Shape] = {}
    for blobs in layers.values():
        batch = next((blob.shape[0] for blob in blobs if blob.shape), 1)
        for blob in blobs:
            if blob.shape is None:
                missing[blob.name] = (batch, *row) if blob.place == 0 else (batch,)
    return missing


def _arguments(
    name: str,
    factory: Callable[..., nn.Module | NetSpec],
    arguments: Mapping[str, Any],
    offered: Mapping[str, object],
) -> dict[str, Any]:
    """What the callable will be given, held against its signature before it runs."""
    try:
        signature = inspect.signature(factory)
    except ValueError:  # a builtin without a signature: it judges its arguments itself
        return dict(arguments)
    by_keyword = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    for key in arguments:
        if key not in by_keyword and not takes_any:
            own = [known for known in by_keyword if known not in offered]
            remedy = _nearest(key, own) if own else "it takes none of its own"
            raise NetError(f"net {name}: net.arguments.{key} is not an argument of it: {remedy}")
    # Offered only by name: a callable that takes anything (**kwargs) may hand it to something that does not.
    given = {key: value for key, value in offered.items() if key in by_keyword} | dict(arguments)
    # Before the call: a TypeError from inside the callable would be no fault of the arguments.
    try:
        signature.bind(**given)
    except TypeError as error:
        raise NetError(f"net {name}: given {_listed(given)}: {error}: set it in net.arguments") from error
    return given


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known) or 'none'}."


def _listed(given: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in given.items()) or "no arguments"
