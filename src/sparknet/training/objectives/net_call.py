"""How a module is called: which column becomes which argument of `forward`, and which of its outputs is meant."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import NetError

__all__ = ["NetCall", "output_of"]


class NetCall:
    """Calls a module with the columns of a batch.

    Columns are given by name where `forward` has parameters of all the inputs' names, else in their order. A net
    that computes its own loss is given the targets too, those that `forward` names; a single target also as
    `labels`.

    Args:
        module: the net.
        rows: names inputs and targets.
        name: of the net, for messages.
        with_targets: the net is given targets.

    Raises:
        NetError: `forward` takes fewer inputs, or needs more.
    """

    def __init__(self, module: nn.Module, rows: RowSchema, *, name: str, with_targets: bool = False) -> None:
        self._module = module
        self._inputs = tuple(column.name for column in rows.inputs)
        parameters = _parameters(module)
        by_name = parameters is not None and set(self._inputs) <= set(parameters)
        # A single input goes in whatever the parameter is called, and so do those of a net that takes anything.
        self._by_name = by_name and len(self._inputs) > 1
        self._targets = _target_keywords(parameters or (), rows) if with_targets else {}
        if with_targets and not self._targets:
            raise NetError(
                f"net {name}: objective.loss is 'net' and forward has none of the parameters "
                f"{', '.join(column.name for column in rows.targets)} or labels, so that it cannot compute a loss: "
                "name another loss"
            )
        _check(module, self._inputs, self._targets, name=name, by_name=self._by_name)

    def __call__(self, batch: Mapping[str, Tensor], *, targets: bool = True) -> object:
        """What the module returns for a batch; without `targets` for its inputs alone."""
        keywords = {parameter: batch[column] for parameter, column in self._targets.items()} if targets else {}
        if self._by_name:
            return self._module(**{name: batch[name] for name in self._inputs}, **keywords)
        return self._module(*(batch[name] for name in self._inputs), **keywords)


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
        attributes: dict[str, object] = getattr(outputs, "__dict__", {})
        named = {key: value for key, value in attributes.items() if isinstance(value, Tensor)}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor) and key != "loss"}
    if which in tensors:
        return tensors[which]
    if not which and tensors:
        return tensors.get("logits", next(iter(tensors.values())))
    found = ", ".join(named) or type(outputs).__name__
    raise NetError(
        f"net {net} returned {found}; " + (f"there is no output {which!r}" if which else "it must return a tensor")
    )


def _parameters(module: nn.Module) -> tuple[str, ...] | None:
    """Names of what `forward` takes; None where it does not say."""
    try:
        signature = inspect.signature(module.forward)
    except ValueError:  # a builtin
        return None
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(one.name for one in signature.parameters.values() if one.kind in by_keyword)


def _target_keywords(parameters: Sequence[str], rows: RowSchema) -> dict[str, str]:
    names = [column.name for column in rows.targets]
    found = {name: name for name in names if name in parameters}
    # As Hugging Face's models call it, whatever the column is called.
    if not found and len(names) == 1 and "labels" in parameters:
        return {"labels": names[0]}
    return found


def _check(
    module: nn.Module, inputs: Sequence[str], targets: Mapping[str, str], *, name: str, by_name: bool
) -> None:
    """Hold the columns against `forward` before any batch: an error from inside it would be no fault of theirs."""
    try:
        signature = inspect.signature(module.forward)
    except ValueError:
        return
    given = {key: None for key in (*(inputs if by_name else ()), *targets)}
    try:
        signature.bind(*(() if by_name else [None] * len(inputs)), **given)
    except TypeError as error:
        raise NetError(
            f"net {name}: forward{signature} is given the columns {', '.join(inputs)}: {error}; name as many "
            "columns in data.inputs as it takes, by the names of its parameters"
        ) from error
