"""How replicas agree: weighted average by all-reduce, then an outer optimiser's step on the anchor.

The anchor is the weights of the last commit, the same on every replica. With weights by samples w_k (Σ w_k = 1)
the average is Σ w_k local_k, and the delta (DiLoCo's outer gradient) is anchor - average. Outer SGD is
DiLoCo's (arXiv 2311.08105, algorithm 1); with rate 1 and no momentum the new anchor is the average itself,
which is SparkNet's rule (arXiv 1511.06051, algorithm 2).

Nothing changes before `apply`: an exchange that fails leaves anchor and local weights as they were.

A replica holds its weights three times, as float32: `local`, which it trains, the anchor, and the buffer that the
average is made in; with outer momentum the trainable ones once more. On a device there is one more: `local` is then
the host's copy. Healing adds a momentum and the inner state where they are received, and one piece everywhere else.
"""

from collections.abc import Iterable
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from sparknet.config import OuterOptimiser
from sparknet.errors import TrainingDiverged
from sparknet.training.sync.flat_weights import CHUNK, FlatWeights, WeightsHash, chunks
from sparknet.training.sync.pieces import Bytes, Streamed, cut

__all__ = ["AllReduce", "HealRole", "Synchroniser"]

HealRole = Literal["keep", "receive", "rebase"]
_PIECE_BYTES = 64 << 20
"""Of what a joiner is brought: those that keep what they have hold no more of it."""


class AllReduce(Protocol):
    """A group of replicas that can sum, take maxima and follow rank 0; every call raises when a peer is lost."""

    def sum(self, buffer: Tensor) -> None:
        """Replace a float32 vector by its sum over the group; bit-identical on all members."""
        ...

    def max(self, buffer: Tensor) -> None:
        """Replace an int64 vector by its maximum over the group."""
        ...

    def broadcast(self, buffer: Tensor) -> None:
        """Replace the vector by that of rank 0."""
        ...


class Synchroniser:
    """Keeps the anchor of one replica and moves it together with the other replicas' anchors.

    Args:
        weights: the replica's weights; `weights.local` is what training changes.
        outer: the outer optimiser; acts on trainable parameters, all else is averaged.
        average: False for strategy none: every replica keeps its own weights.
    """

    def __init__(self, weights: FlatWeights, outer: OuterOptimiser, *, average: bool = True) -> None:
        self.weights = weights
        self.outer = outer
        self.average = average
        weights.gather()
        self.anchor = weights.local.clone()
        self.momentum = torch.zeros(weights.trainable) if outer.momentum else None
        self.anchor_hash = WeightsHash.of(self.anchor)
        self._buffer = torch.empty_like(self.anchor)
        self._counters = weights.read_counters()

    def restart(self) -> None:
        """Take the local weights as the anchor, as after loading a checkpoint."""
        self.weights.gather()
        self.anchor.copy_(self.weights.local)
        self.anchor_hash = WeightsHash.of(self.anchor)

    def heal(self, group: AllReduce, role: HealRole, inner_state: Bytes | Streamed) -> memoryview | None:
        """Bring a joiner to the state of rank 0: anchor, outer momentum and inner optimiser state.

        `rebase` is for a replica that was left behind with steps of its own: they become steps from the new anchor.

        Args:
            group: all members of the quorum, who all must call this.
            role: what this replica does with what comes from rank 0.
            inner_state: this replica's own inner state, which is sent if it is rank 0.

        Returns:
            Rank 0's inner state for role `receive`, else None.
        """
        # A broadcast is of the whole group: every member goes through these in this order, also those that keep
        # what they have. Beside the state: one that breaks off must not leave half of it behind. The buffer holds
        # nothing between two exchanges.
        follows = role != "keep"
        _broadcast(group, self.anchor, into=self._buffer if follows else None)
        momentum = None
        if self.momentum is not None:
            momentum = torch.empty_like(self.momentum) if follows else None
            _broadcast(group, self.momentum, into=momentum)
        inner = _broadcast_bytes(group, inner_state, keep=role == "receive")
        if not follows:
            return None
        self.weights.gather()
        anchor, local = self._buffer, self.weights.local
        if role == "rebase":
            # If this try is aborted it is healed once more: the anchors are equal by then, and nothing moves twice.
            # Statistics stay its own: a variance moved by the difference of two others could be negative.
            for own, new, old in chunks(local, anchor, self.anchor, stop=self.weights.trainable):
                own += new - old
        else:
            local.copy_(anchor)
        self.weights.scatter()
        # Integer counters need none of this: the exchange that follows takes their maximum.
        self.anchor, self._buffer, self.momentum = anchor, self.anchor, momentum
        self.anchor_hash = WeightsHash.of(anchor)
        return inner

    def exchange(self, group: AllReduce, weight: float) -> None:
        """Average with the group into a buffer; `apply` makes it count.

        Raises:
            TrainingDiverged: a local weight is not finite; nothing was sent.
        """
        total = 0.0
        # Weights travel and not deltas: that spares reading the anchor here, and with rate 1 their sum already is
        # the new anchor. The shares go in before the sum, so that nothing is left to divide after it.
        for piece in self.weights.gathered():
            for local, buffer in chunks(self.weights.local, self._buffer, start=piece.start, stop=piece.stop):
                torch.mul(local, weight, out=buffer)
                total += float(local.sum())  # not finite as soon as one addend is not; local is still in cache
        # Before anything is sent, and of a replica of weight 0 too: 0 times infinity is nan, and would reach all.
        if not torch.isfinite(torch.tensor(total)):
            raise TrainingDiverged(
                "a weight is no longer finite after the local steps; lower solver.learning_rate or sync.local_steps"
            )
        self._counters = self.weights.read_counters()
        if self.average:
            group.sum(self._buffer)
            if self._counters.numel():
                group.max(self._counters)

    def first_weight(self) -> float:
        """The first number of the anchor that `apply` would make of the last exchange."""
        one = (self._buffer if self.average else self.weights.local)[:1].clone()
        if self.weights.trainable:
            velocity = None if self.momentum is None else self.momentum[:1].clone()
            _outer_step(self.outer, self.anchor[:1], one, velocity, torch.empty(1))
        return float(one) if one.numel() else 0.0

    def abandon(self) -> None:
        """Leave the buffers of a failed exchange to it: the network may still write into them."""
        self._buffer = torch.empty_like(self.anchor)
        self._counters = self.weights.read_counters()

    def apply(self) -> None:
        """The round committed: step the anchor, and start the next local steps from it."""
        local = self.weights.local
        if not self.average:
            self._buffer.copy_(local)
        folded, spare = WeightsHash(), torch.empty(CHUNK)
        # One pass over memory for step, copy and hash: each finds in the cache what the one before has brought
        # there. What is done goes to a device meanwhile.
        for part in self.weights.scattered():
            for at in range(part.start, part.stop, CHUNK):
                piece = slice(at, min(at + CHUNK, part.stop))
                self._step(piece, spare)
                local[piece].copy_(self._buffer[piece])
                folded.add(local[piece])
        # The buffer now holds the new anchor; the old anchor becomes the next buffer.
        self.anchor, self._buffer = self._buffer, self.anchor
        self.anchor_hash = folded.hex()
        self.weights.write_counters(self._counters)

    def _step(self, piece: slice, spare: Tensor) -> None:
        """Outer SGD on a piece of the average, which becomes the new anchor there.

        With momentum μ: v ← μ v + delta, anchor ← anchor - lr v (Nesterov: lr (delta + μ v)).
        """
        # Outer steps are for trainable weights: a variance that goes past its average may become negative.
        own = slice(piece.start, min(piece.stop, self.weights.trainable))
        if own.start < own.stop:
            velocity = None if self.momentum is None else self.momentum[own]
            _outer_step(self.outer, self.anchor[own], self._buffer[own], velocity, spare[: own.stop - own.start])


def _outer_step(
    outer: OuterOptimiser, anchor: Tensor, average: Tensor, velocity: Tensor | None, delta: Tensor
) -> None:
    """Step from `anchor` towards `average`, which becomes the new anchor; `delta` is written over; float32 [n]."""
    if velocity is None:
        if outer.learning_rate != 1:
            torch.lerp(anchor, average, outer.learning_rate, out=average)
        return
    torch.sub(anchor, average, out=delta)
    velocity.mul_(outer.momentum).add_(delta)
    step = delta.add_(velocity, alpha=outer.momentum) if outer.nesterov else velocity
    torch.sub(anchor, step, alpha=outer.learning_rate, out=average)


def _broadcast(group: AllReduce, own: Tensor, *, into: Tensor | None) -> None:
    """Broadcast rank 0's vector; `into` takes it, and None lets it pass."""
    length = _PIECE_BYTES // own.element_size()
    _pass_on(group, own.split(length), into if into is not None else torch.empty_like(own[:length]), own.numel())


def _broadcast_bytes(group: AllReduce, own: Bytes | Streamed, *, keep: bool) -> memoryview | None:
    """Broadcast rank 0's bytes; None unless they are to be kept."""
    size = torch.tensor([len(own)], dtype=torch.int64)
    group.broadcast(size)
    total = int(size)
    # Of another length: this is not rank 0. Of the same, they are written over like any other member's.
    given = cut(own, _PIECE_BYTES) if len(own) == total else ()
    # Copied a piece at a time: torch makes no tensor over memory that must not be written.
    pieces = (torch.from_numpy(np.array(np.frombuffer(piece, np.uint8))) for piece in given)
    into = torch.empty(total if keep else min(total, _PIECE_BYTES), dtype=torch.uint8)
    _pass_on(group, pieces, into, total)
    return into.numpy().data if keep else None


def _pass_on(group: AllReduce, own: Iterable[Tensor], into: Tensor, size: int) -> None:
    """Broadcast so many elements, cut alike by all; an `into` that is shorter holds one piece after the other."""
    length, own = _PIECE_BYTES // into.element_size(), iter(own)
    for at in range(0, size, length):
        count = min(length, size - at)
        piece = into[at : at + count] if into.numel() == size else into[:count]
        mine = next(own, None)
        if mine is not None:
            piece.copy_(mine)
        group.broadcast(piece)
