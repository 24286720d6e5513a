"""`net.compile`: the forward pass of a net compiled where it is trained, or a reason why it is not."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparknet.training.objectives.objective import Objective
from sparknet.training.worker.precision import Precision

__all__ = ["compile_net"]


def compile_net(objective: Objective, batch: Mapping[str, Tensor], precision: Precision) -> str:
    """Compile a net's training pass in place, and try it on a batch; its weights and statistics stay as they are.

    Compiling happens at the first pass: here, where nobody waits in a round yet, and where it may fail. Evaluations
    run as they are: their batches are of other sizes, and each would be compiled in the middle of the run.

    Args:
        objective: whose net it is.
        batch: as the first step will have it: another size would be compiled anew.
        precision: of the steps.

    Returns:
        Empty, or why it was not compiled: the net then runs as it is.
    """
    module = objective.module
    statistics = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        # Of this object alone, and not `module.compile()`, which compiles evaluations too.
        module.forward = _in_training(module, torch.compile(module.forward))
        objective.train_mode()
        with precision.forward():
            loss = objective.loss(batch)
        # The backward pass is compiled at its first run too.
        loss.backward()
    except Exception as error:  # a compiler, or the lack of one, may raise anything
        # The class's own forward is found again.
        module.__dict__.pop("forward", None)
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        module.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(statistics[name])
    return ""


def _in_training(module: nn.Module, compiled: Any) -> Any:
    """A forward that is the compiled one in training, and else the module's own."""
    own = module.forward

    @functools.wraps(own)
    def forward(*arguments: Any, **keywords: Any) -> Any:
        return (compiled if module.training else own)(*arguments, **keywords)

    return forward
