"""`net.compile`: the forward pass of a net compiled where it is trained, or a reason why it is not."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sparknet.training.objectives.objective import Objective
from sparknet.training.worker.precision import Precision

__all__ = ["compile_net"]


def compile_net(objective: Objective, batch: Mapping[str, Tensor], precision: Precision) -> str:
    """Compile a net in place, and try it on a batch; its weights and statistics stay as they are.

    Compiling happens at the first pass: here, where nobody waits in a round yet, and where it may fail.

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
        # Of this object alone, and not `module.compile()`, which passes over modules of torch's own, as Sequential.
        module.forward = torch.compile(module.forward)
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
