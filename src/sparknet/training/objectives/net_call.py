"""How a module is called: which column becomes which argument of `forward`, and which of its outputs is meant."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import NetError

__all__ = ["NetCall", "output_of"]


class NetCall:
    """Calls a module with the columns of a batch.

    Columns are given by name where `forward` has parameters of all the inputs' names, or takes any (`**columns`),
    else in their order; a single one always by its place. A net that computes its own loss is given the targets
    too, those that `forward` names; a single target also as `labels`.

    Args:
        module: the net.
        rows: names inputs and targets.
        name: of the net, for messages.
        with_targets: the net is given targets.

    Raises:
        NetError: `forward` takes fewer inputs, or needs more.
    """

    def __init__(self, module: nn.Module, rows: RowSchema, *, name: str, with_targets: bool = False) -> None:
        self._module, self._name = module, name
        self._inputs = tuple(column.name for column in rows.inputs)
        self._signature = _signature(module)
        known, others = _by_keyword(self._signature), [one.name for one in rows.targets if one not in rows.inputs]
        self._targets = _target_keywords(known, others) if with_targets else {}
        # A single input goes in whatever the parameter is called.
        self._by_name = len(self._inputs) > 1 and _fit_by_name(self._signature, self._inputs, self._targets)
        # An autoencoder's target is its input, which it has.
        if with_targets and others and not self._targets:
            raise NetError(
                f"net {name}: objective.loss is 'net' and forward has none of the parameters "
                f"{', '.join(others)} or labels, so that it cannot compute a loss: name another loss"
            )
        self._check(self._targets)

    def __call__(self, batch: Mapping[str, Tensor], *, targets: bool = True) -> object:
        """What the module returns for a batch; without `targets` for its inputs alone.

        Raises:
            NetError: it is called without targets, and does not work without.
        """
        keywords = {parameter: batch[column] for parameter, column in self._targets.items()} if targets else {}
        if self._targets and not targets:
            self._check({})
        if self._by_name:
            return self._module(**{name: batch[name] for name in self._inputs}, **keywords)
        return self._module(*(batch[name] for name in self._inputs), **keywords)

    def _check(self, targets: Mapping[str, str]) -> None:
        """Hold the columns against `forward` before it runs: an error from inside it is no fault of theirs."""
        signature = self._signature
        if signature is None:
            return
        named = {name: None for name in (*(self._inputs if self._by_name else ()), *targets)}
        try:
            signature.bind(*(() if self._by_name else [None] * len(self._inputs)), **named)
        except TypeError as error:
            raise NetError(
                f"net {self._name}: data.inputs are {', '.join(self._inputs)} and forward takes {signature}: "
                f"{error}; name as many columns as it takes, by the names of its parameters, and give those a "
                "default that no column is for"
            ) from error


def output_of(outputs: object, which: str, *, net: str) -> Tensor:
    """One of the tensors that a net has returned.

    Args:
        outputs: a tensor, a sequence or mapping of tensors, or an object with tensors as attributes.
        which: name or number; empty: the only one, `logits` where there is one, or else the first.
        net: its name, for messages.

    Raises:
        NetError: there is no such output, or it is no tensor.
    """
    if isinstance(outputs, Tensor):
        named: dict[str, object] = {"0": outputs}
    elif isinstance(outputs, Mapping):
        named = {str(key): value for key, value in cast("Mapping[Any, object]", outputs).items()}
    elif isinstance(outputs, Sequence) and not isinstance(outputs, str):
        named = {str(at): value for at, value in enumerate(cast("Sequence[object]", outputs))}
    else:
        named = {key: value for key, value in _attributes(outputs).items() if isinstance(value, Tensor)}
    # A named tuple has both, names and places.
    for at, field in enumerate(getattr(outputs, "_fields", ())):
        named[field] = named[str(at)]
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor) and key != "loss"}
    if which in tensors:
        return tensors[which]
    if not which and tensors:
        return tensors.get("logits", next(iter(tensors.values())))
    found = ", ".join(named) or type(outputs).__name__
    raise NetError(
        f"net {net} returned {found}; " + (f"there is no output {which!r}" if which else "it must return a tensor")
    )


def _attributes(outputs: object) -> Mapping[str, object]:
    if dataclasses.is_dataclass(outputs):
        # One with slots has no __dict__.
        return {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    return getattr(outputs, "__dict__", {})


def _signature(module: nn.Module) -> inspect.Signature | None:
    """What `forward` takes; None where it does not say."""
    try:
        return inspect.signature(module.forward)
    except ValueError:  # a builtin
        return None


def _by_keyword(signature: inspect.Signature | None) -> list[str]:
    parameters = signature.parameters.values() if signature else ()
    return [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]


def _fit_by_name(signature: inspect.Signature | None, inputs: Sequence[str], targets: Mapping[str, str]) -> bool:
    if signature is None:
        return False
    if set(inputs) <= set(_by_keyword(signature)):
        return True
    kinds = [one.kind for one in signature.parameters.values()]
    # What takes anything in any way says nothing of names: such a wrapper hands its inputs on in their order.
    if inspect.Parameter.VAR_KEYWORD not in kinds or inspect.Parameter.VAR_POSITIONAL in kinds:
        return False
    try:
        signature.bind(**dict.fromkeys((*inputs, *targets)))
    except TypeError:  # a parameter of another name wants a column too
        return False
    return True


def _target_keywords(parameters: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    found = {name: name for name in names if name in parameters}
    # As Hugging Face's models call it, whatever the column is called.
    if not found and len(names) == 1 and "labels" in parameters:
        return {"labels": names[0]}
    return found
