"""A run of a module that begins with weights from files: they are its checkpoint of round 0."""

from torch import nn

from sparknet.config import Net
from sparknet.training.coordination.rules import RunProgress
from sparknet.training.objectives.net_weights import load_module_weights
from sparknet.training.objectives.objective import Objective
from sparknet.training.run_files.checkpoint import WEIGHTS, Checkpoints, Saved
from sparknet.training.run_files.state_bytes import weights_file

__all__ = ["begin_pretrained", "begin_with"]

_SHOWN = 6


def begin_pretrained(net: Net, objective: Objective, checkpoints: Checkpoints) -> tuple[Saved, list[str]]:
    """Load `net.weights` into the driver's net and keep them where every worker begins.

    Returns:
        The checkpoint, and what the files lacked and had too much of, one line each.

    Raises:
        NetError: a file is missing or damaged, or does not fit.
        CheckpointError: the checkpoint cannot be written.
    """
    loaded = load_module_weights(objective.module, net.weights, prefixes=net.weights_map, strict=net.weights_strict)
    saved = _begun(objective, checkpoints)
    told = [
        f"{net.weights} {what} {len(names)} weights: {', '.join(names[:_SHOWN])}{' ...' if names[_SHOWN:] else ''}"
        for what, names in (("lacks", loaded.missing), ("has, and the net has not,", loaded.unexpected))
        if names
    ]
    return saved, told


def begin_with(module: nn.Module, objective: Objective, checkpoints: Checkpoints) -> Saved:
    """Give the driver's net the weights of a module of its form, and keep them where every worker begins.

    Raises:
        CheckpointError: the checkpoint cannot be written.
    """
    objective.module.load_state_dict(module.state_dict())
    return _begun(objective, checkpoints)


def _begun(objective: Objective, checkpoints: Checkpoints) -> Saved:
    with checkpoints.writing(RunProgress()) as draft:
        draft.write_all(WEIGHTS, weights_file(objective.module))
    return checkpoints.load(0)
