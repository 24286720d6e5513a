"""One replica and its local steps: forward, backward, optimiser."""

import threading
import time
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from sparknet.config import RunConfig
from sparknet.data.loading.loader import Loader
from sparknet.data.loading.sampling_order import Cursor
from sparknet.errors import TrainingDiverged
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.optimiser import InnerSolver
from sparknet.training.objectives.seeding import seed_draws
from sparknet.training.run_files.state_bytes import load_optimizer, optimizer_file
from sparknet.training.run_files.tensor_bytes import TensorFile
from sparknet.training.sync.pieces import Bytes
from sparknet.training.worker.compiling import compile_net
from sparknet.training.worker.device_feed import DeviceFeed
from sparknet.training.worker.precision import Precision

__all__ = ["Replica", "StepReport"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one round's local steps came to."""

    steps: int
    samples: int
    loss: float
    """Mean over the batches; with fp16 over those that did not overflow."""
    learning_rate: float
    """At the last step."""
    seconds: float
    cursor: Cursor


class Replica:
    """An objective with its optimiser, trained by this worker alone between synchronisations.

    Args:
        objective: what is trained, with initial weights.
        solver: steps its weights.
        config: seeds and the length of a round.
        slot: whose random draws (dropout) these are.
        feed: turns a loader's batches into tensors; not given: they are ready to be used.
    """

    def __init__(
        self,
        objective: Objective,
        solver: InnerSolver,
        config: RunConfig,
        *,
        slot: int,
        feed: DeviceFeed | None = None,
    ) -> None:
        self.objective = objective
        self.config = config
        self.slot = slot
        self._feed = feed or DeviceFeed.of(objective, None)
        self._solver = solver
        self._precision = Precision(config.solver.precision, self._feed.device)
        self.steps_taken = 0

    @property
    def module(self) -> nn.Module:
        """What is averaged and saved."""
        return self.objective.module

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The inner optimiser."""
        return self._solver.optimizer

    def inner_state_file(self) -> TensorFile:
        """What the optimiser, and the scale of fp16, need to go on exactly; to be written before the next step."""
        return optimizer_file(self.optimizer, self._precision.state())

    def load_inner_state(self, data: Bytes) -> None:
        """Take the bytes of an `inner_state_file`.

        Raises:
            CheckpointError: the bytes are damaged.
        """
        self._precision.load(load_optimizer(self.optimizer, data))

    def forget_inner_state(self) -> None:
        """Go on as if no step had been taken."""
        self._solver.forget()
        self._precision.load({})

    def compile(self, loader: Loader) -> str:
        """Compile the net for the loader's batches; empty, or why that cannot be done."""
        return compile_net(self.objective, self._feed.batch(next(loader)), self._precision)

    def take_steps(
        self, loader: Loader, steps: int, *, round: int, iterations: range, ended: threading.Event
    ) -> StepReport | None:
        """Take so many steps; None when `ended` was set on the way.

        Args:
            loader: gives the batches.
            steps: how many.
            round: which one they are of, for its random numbers.
            iterations: of the run, which are those of that round.
            ended: ends the steps before their time.

        Raises:
            TrainingDiverged: the mean loss is not finite, or fp16 overflows whatever the scale.
            NetError: the net does not return what it must.
        """
        share = self._solver.batch_share
        # A seed per (run, slot, round): dropout repeats exactly whatever died or resumed before.
        seed_draws(int(np.random.SeedSequence([self.config.run.seed, self.slot, round]).generate_state(1)[0]))
        # An evaluation may have left it in the other mode.
        self.objective.train_mode()
        # Losses stay where they are: reading each would let the host wait for the device at every step.
        losses, samples, rate, cursor = list[Tensor](), 0, 0.0, None
        began = time.perf_counter()
        for step in range(steps):
            # At every step, since a superseded attempt takes the core of the one that has replaced it.
            if ended.is_set():
                return None
            # Where paces differ, iterations are counted in shares of the round: all schedules agree.
            rate = self._solver.rate(iterations.start + step * len(iterations) / steps)
            self._solver.set_rate(rate)
            self.optimizer.zero_grad(set_to_none=True)
            for _ in range(self._solver.batches_per_step):
                batch = next(loader)
                with self._precision.forward():
                    loss = self.objective.loss(self._feed.batch(batch))
                self._precision.backward(loss * share if share != 1 else loss)
                losses.append(loss.detach())
                samples += batch.rows
                cursor = batch.cursor
            self._precision.step(self.optimizer, clip_norm=self._solver.clip_norm)
            self.steps_taken += 1
        return StepReport(
            steps=steps,
            samples=samples,
            loss=self._mean(losses, round=round, rate=rate),
            learning_rate=rate,
            seconds=time.perf_counter() - began,
            cursor=cast("Cursor", cursor),
        )

    def _mean(self, losses: list[Tensor], *, round: int, rate: float) -> float:
        """The mean loss of a round; looking once a round is enough, since weights that are not finite stay so."""
        mean = float(self._precision.counted(torch.stack(losses)).mean())
        if not np.isfinite(mean):
            solver = self.config.solver
            knob = "base_lr in the solver file" if solver.prototxt else "solver.learning_rate"
            wider = ", set solver.precision to 'bf16'" if solver.precision == "fp16" else ""
            raise TrainingDiverged(
                f"the training loss of round {round + 1} is {mean}; it must be finite: lower {knob} "
                f"(now {rate:g}){wider} or look for bad values in the data"
            )
        if overflow := self._precision.overflow:
            raise TrainingDiverged(f"round {round + 1} cannot be trained: {overflow}")
        return mean
