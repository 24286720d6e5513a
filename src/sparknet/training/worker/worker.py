"""The worker's loop: do what the driver's answer says, which yields the next answer, until the run ends."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparknet.config import RunConfig
from sparknet.data.loading.loader import Loader
from sparknet.data.loading.sampling_order import Cursor
from sparknet.errors import ClusterError
from sparknet.training.coordination.messages import (
    Aborted,
    Answer,
    Checkpoint,
    ChoreReport,
    Committed,
    Done,
    Evaluate,
    Exchange,
    NextChore,
    Proceed,
    Ready,
    Register,
    Stop,
    Superseded,
    Vote,
    Welcome,
)
from sparknet.training.coordination.post_commit import CHECKPOINT
from sparknet.training.run_files.checkpoint import INNER, OUTER, WEIGHTS
from sparknet.training.run_files.state_bytes import load_weights, weights_file
from sparknet.training.run_files.tensor_bytes import TensorFile, load_tensors
from sparknet.training.sync.flat_weights import FlatWeights
from sparknet.training.sync.gloo_groups import ExchangeFailed, Groups
from sparknet.training.sync.synchronise import AllReduce, HealRole, Synchroniser
from sparknet.training.worker.driver_protocol import Driver
from sparknet.training.worker.replica import Replica, StepReport

__all__ = ["Surroundings", "Worker"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a worker finds around it."""

    driver: Driver
    """The authority."""
    groups: Groups
    """How to reach the other workers."""
    open_loader: Callable[[Cursor], Loader]
    """Opens the training rows of this slot at a cursor."""
    initial_weights: Callable[[], Mapping[str, Tensor]]
    """Makes the state_dict as it was before the first round: a fall-back before any checkpoint needs it."""
    evaluate: Callable[[int], ChoreReport]
    """Evaluates the objective on one part of the rows that are measured, by its number."""
    ended: threading.Event
    """Set from outside when there is no use in going on."""
    broken: Callable[[], str] = lambda: ""
    """Why this attempt must fail, so that another takes over: the driver does not answer, or its device is gone."""


class Worker:
    """One attempt of one slot.

    Args:
        register: who this is.
        config: the run's configuration.
        replica: the objective and its optimiser, with initial weights.
        around: driver, peers and data.

    Attributes:
        phase: what it is doing, for error messages.
    """

    def __init__(self, register: Register, config: RunConfig, *, replica: Replica, around: Surroundings) -> None:
        self.phase = "registering"
        self._who = register
        self._config = config
        self._replica = replica
        self._around = around
        self._sync = Synchroniser(
            FlatWeights(replica.module), config.sync.outer, average=config.sync.strategy != "none"
        )
        # They are there until something else is loaded or trained: only a fall-back needs them anew.
        self._has_initial = True
        self._loader: Loader | None = None
        self._round = 0
        self._steps = 0
        self._iterations = range(0)
        self._ready: Ready | None = None
        self._followed = 0

    def run(self) -> None:
        """Take part until the driver says that it is over, for the run or for this attempt."""
        try:
            answer: Answer | None = self._around.driver.ask(self._who)
            while answer is not None:
                self._check_driver()
                self._followed += 1
                answer = self._follow(answer)
        finally:
            # First the sockets: peers in the middle of an exchange wait for this worker until they close.
            self._around.groups.leave()
            if self._loader is not None:
                self._loader.close()

    @property
    def progress(self) -> int:
        """Rises as long as this worker gets on, for its heartbeat."""
        return self._replica.steps_taken + self._followed

    def _check_driver(self) -> None:
        """The driver may have decided without this worker while it could not be heard: then end here."""
        if reason := self._around.broken():
            raise ClusterError(reason)

    def _follow(self, answer: Answer) -> Answer | None:
        """Do what an answer says; the next answer, or None at the end."""
        match answer:
            case Welcome():
                return self._begin(answer)
            case Exchange():
                return self._exchange(answer)
            case Committed():
                return self._commit(answer)
            case Aborted():
                # The same steps once more: nothing has changed since they were made.
                return self._say_ready()
            case Evaluate():
                self.phase = f"evaluating after round {answer.round}"
                return self._next_chore(self._around.evaluate(answer.part))
            case Checkpoint():
                return self._put_checkpoint(answer)
            case Proceed():
                return self._train()
            case Done() | Stop():
                return None
            case Superseded():
                # An error, not an end: Spark would take this slot for done and end the newer attempt.
                raise ClusterError("a newer attempt holds this slot")
            case _:
                raise AssertionError(f"the driver answered {answer!r}, which answers no request of this loop")

    def _begin(self, welcome: Welcome) -> Answer:
        """Take the state of a round: the initial weights, a checkpoint, or (by saying so) a peer's state."""
        self.phase = f"taking the state of round {welcome.round}"
        self._take_up(welcome)
        # After a fall-back there is one already, whose threads read ahead from another place.
        if self._loader is not None:
            self._loader.close()
        self._loader = self._around.open_loader(welcome.cursor)
        if welcome.heal:
            self._has_initial = False
            # 0 steps ask for a peer's state, which comes in the same group as the next exchange.
            self._ready = self._message(welcome.cursor)
            return self._say_ready()
        self._restore(welcome.checkpoint)
        return self._next_chore(None) if welcome.chores else self._train()

    def _take_up(self, told: Welcome | Committed) -> None:
        self._round, self._steps = told.round, told.steps
        self._iterations = range(told.iteration, told.iteration + told.iterations)

    def _restore(self, checkpoint: int | None) -> None:
        files: dict[str, memoryview] = {}
        # Into the tensors that are there, which are views of the synchroniser's vector; it then looks again.
        if checkpoint is not None:
            files = self._around.driver.fetch_checkpoint(checkpoint)
            # Taken out: the bytes go when they are loaded, before the others become tensors.
            load_weights(self._replica.module, files.pop(WEIGHTS))
            self._sync.restart()
        elif not self._has_initial:
            self._replica.module.load_state_dict(self._around.initial_weights())
            self._sync.restart()
        self._has_initial = False
        self._replica.forget_inner_state()
        if INNER in files:
            self._replica.load_inner_state(files[INNER])
        if self._sync.momentum is not None:
            # Written over in any case: after a fall-back the momentum is of rounds that are not part of the run.
            outer = (
                load_tensors(files[OUTER])["momentum"] if OUTER in files else torch.zeros_like(self._sync.momentum)
            )
            self._sync.momentum.copy_(outer)

    def _train(self) -> Answer:
        self.phase = f"taking the local steps of round {self._round + 1}"
        assert self._loader is not None
        report = self._replica.take_steps(
            self._loader,
            self._steps,
            round=self._round,
            iterations=self._iterations,
            ended=self._around.ended,
        )
        if report is None:
            # Steps that were broken off are never announced; the answer tells why the run has ended.
            self._check_driver()
            self._ready = self._message(Cursor(epoch=0, position=0))
            return self._say_ready()
        self._ready = self._message(report.cursor, report)
        return self._say_ready()

    def _message(self, cursor: Cursor, report: StepReport | None = None) -> Ready:
        return Ready(
            slot=self._who.slot,
            attempt=self._who.attempt,
            round=self._round,
            steps=report.steps if report else 0,
            samples=report.samples if report else 0,
            cursor=cursor,
            loss=report.loss if report else 0.0,
            learning_rate=report.learning_rate if report else 0.0,
            step_seconds=report.seconds if report else 0.0,
            anchor_hash=self._sync.anchor_hash,
        )

    def _say_ready(self) -> Answer:
        self.phase = f"waiting for the quorum of round {self._round + 1}"
        assert self._ready is not None
        return self._around.driver.ask(self._ready)

    def _exchange(self, exchange: Exchange) -> Answer:
        self.phase = f"synchronising round {exchange.round + 1}"
        began = time.perf_counter()
        reason = ""
        # Only what the network does becomes a vote. TrainingDiverged goes on up: the run fails by it, and the
        # heartbeats of those who wait in the exchange tell them.
        try:
            group = self._around.groups.enter(exchange.epoch, exchange.rank, exchange.size)
            if exchange.healing:
                self._heal(group, exchange)
            self._sync.exchange(group, exchange.weight)
        except ExchangeFailed as error:
            # Before the vote: leaving closes this worker's sockets, which frees the peers that wait for it. In a
            # ring only a dead worker's neighbour has an error at once, the others would sit out the timeout.
            reason = str(error)
            self._around.groups.leave()
            self._sync.abandon()
        return self._around.driver.ask(
            Vote(
                slot=self._who.slot,
                attempt=self._who.attempt,
                round=exchange.round,
                epoch=exchange.epoch,
                ok=not reason,
                reason=reason,
                exchange_seconds=time.perf_counter() - began,
                first_weight=0.0 if reason else self._sync.first_weight(),
            )
        )

    def _heal(self, group: AllReduce, exchange: Exchange) -> None:
        assert self._ready is not None
        role: HealRole = "keep"
        if exchange.heal:
            # Where replicas train each by itself, one with steps of its own needs nobody's weights.
            left_behind = "rebase" if self._sync.average else "keep"
            role = left_behind if self._ready.steps else "receive"
        # A newcomer takes rank 0's inner state: one replica's is as good as another's, and better than none.
        inner_state = self._replica.inner_state_file() if exchange.rank == 0 else b""
        inner = self._sync.heal(group, role, inner_state)
        if inner is not None:
            self._replica.load_inner_state(inner)
        # `_ready` stays as it is: if this try is aborted, the driver sees the old round in it and heals once more.
        self._round = exchange.round

    def _commit(self, committed: Committed) -> Answer:
        self._sync.apply()
        self._take_up(committed)
        if self._config.sync.inner_state == "reset":
            self._replica.forget_inner_state()
        return self._next_chore(None) if committed.chores else self._train()

    def _put_checkpoint(self, checkpoint: Checkpoint) -> Answer:
        self.phase = f"saving the checkpoint of round {checkpoint.round}"
        # It is asked for between a commit and the next steps, when the local weights are the anchor.
        files = {
            WEIGHTS: weights_file(self._replica.module),
            INNER: self._replica.inner_state_file(),
        }
        if self._sync.momentum is not None:
            files[OUTER] = TensorFile({"momentum": self._sync.momentum})
        self._around.driver.put_checkpoint(checkpoint.round, files)
        return self._next_chore(ChoreReport(part=CHECKPOINT))

    def _next_chore(self, report: ChoreReport | None) -> Answer:
        return self._around.driver.ask(
            NextChore(
                slot=self._who.slot,
                attempt=self._who.attempt,
                round=self._round,
                anchor_hash=self._sync.anchor_hash,
                report=report,
            )
        )
