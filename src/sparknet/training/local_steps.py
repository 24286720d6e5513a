"""One replica and its local steps: forward, backward, optimiser."""

import threading
import time
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sparknet.config import RunConfig
from sparknet.data.loader import Loader
from sparknet.data.order import Cursor
from sparknet.errors import NetError, TrainingDiverged
from sparknet.training.solver import build_optimizer, learning_rate, set_learning_rate

__all__ = ["Replica", "StepReport"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one round's local steps came to."""

    steps: int
    samples: int
    loss: float
    """Mean over the steps."""
    learning_rate: float
    """At the last step."""
    seconds: float
    cursor: Cursor


class Replica:
    """A module with its optimiser, trained by this worker alone between synchronisations.

    Args:
        module: maps float32 inputs [batch, *shape] to logits [batch, classes].
        config: solver, seeds and the length of a round.
        slot: whose random draws (dropout) these are.
        rounds: rounds of the whole run, which the learning-rate policies need.
    """

    def __init__(self, module: nn.Module, config: RunConfig, *, slot: int, rounds: int) -> None:
        self.module = module
        self.config = config
        self.slot = slot
        self.total_iterations = rounds * config.sync.local_steps
        self.optimizer = build_optimizer(config.solver, module)
        self.steps_taken = 0

    def take_steps(self, loader: Loader, steps: int, *, round: int, ended: threading.Event) -> StepReport | None:
        """Train for `steps` batches; None when `ended` was set on the way.

        Raises:
            TrainingDiverged: the mean loss is not finite.
            NetError: the module does not return logits of the right form.
        """
        local_steps, solver = self.config.sync.local_steps, self.config.solver
        # A seed per (run, slot, round): dropout repeats exactly whatever died or resumed before.
        torch.manual_seed(
            int(np.random.SeedSequence([self.config.run.seed, self.slot, round]).generate_state(1)[0])
        )
        self.module.train()
        total, samples, rate, cursor = torch.zeros(()), 0, 0.0, None
        began = time.perf_counter()
        for step in range(steps):
            if ended.is_set():
                return None
            batch = next(loader)
            # Where paces differ, iterations are counted in shares of the round: all schedules agree.
            rate = learning_rate(solver, (round + step / steps) * local_steps, self.total_iterations)
            set_learning_rate(self.optimizer, rate)
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._loss(torch.from_numpy(batch.images), torch.from_numpy(batch.labels))
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
            samples += len(batch.labels)
            self.steps_taken += 1
            cursor = batch.cursor
        mean = float(total) / steps
        if not np.isfinite(mean):
            raise TrainingDiverged(
                f"the training loss of round {round + 1} is {mean}; it must be finite: lower solver.learning_rate "
                f"(now {rate:g}) or look for bad values in the data"
            )
        return StepReport(
            steps=steps,
            samples=samples,
            loss=mean,
            learning_rate=rate,
            seconds=time.perf_counter() - began,
            cursor=cast("Cursor", cursor),
        )

    def logits(self, images: Tensor) -> Tensor:
        """Run the module on float32 [batch, *shape].

        Raises:
            NetError: what comes back is not [batch, classes].
        """
        if self.config.net.channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        output: object = self.module(images)
        if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images):
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise NetError(f"net {self.config.net.name} returned {found}; it must return [{len(images)}, classes]")
        return output

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.logits(images)
        try:
            return functional.cross_entropy(logits, labels)
        except IndexError as error:
            raise NetError(
                f"net {self.config.net.name} returned {tuple(logits.shape)} and a label is {int(labels.max())}; it "
                "must return a score for every class: build it with the `classes` that it is given"
            ) from error
