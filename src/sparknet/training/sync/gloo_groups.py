"""Gloo groups by membership epoch, which can be left at any moment.

A group is kept while the membership stays the same and made anew (10 to 50 ms) when it changes.
"""

import contextlib
import queue
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

from torch import Tensor, distributed

from sparknet.errors import SparkNetError
from sparknet.training.sync.synchronise import AllReduce

dist: Any = distributed  # its annotations leave out the parts that are used here

__all__ = ["ExchangeFailed", "GlooGroup", "Groups", "Rendezvous", "SoloGroup"]


class ExchangeFailed(SparkNetError):
    """An all-reduce did not come through: a peer died, hangs, or cannot be reached. The round is tried again."""


class Rendezvous(Protocol):
    """Where the members of a group leave their addresses for each other."""

    def publish(self, key: str, value: bytes) -> None:
        """Store a value for all members."""
        ...

    def fetch(self, key: str, timeout_seconds: float) -> bytes:
        """Wait for a value; raises when the time is up."""
        ...


class _Store(dist.Store):  # pyright: ignore[reportUntypedBaseClass]
    """Lets gloo meet through a `Rendezvous`, so that no unauthenticated TCPStore port is opened."""

    def __init__(self, rendezvous: Rendezvous, prefix: str, timeout_seconds: float) -> None:
        super().__init__()
        self._rendezvous = rendezvous
        self._prefix = prefix
        self._timeout_seconds = timeout_seconds

    def set(self, key: str, value: Any) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        self._rendezvous.publish(f"{self._prefix}/{key}", data)

    def get(self, key: str) -> bytes:
        return self._rendezvous.fetch(f"{self._prefix}/{key}", self._timeout_seconds)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        # gloo calls this for each peer's address, with a timeout of 30 minutes (torch 2.13): ours holds instead.
        for key in keys:
            self.get(key)


class SoloGroup:
    """The group of one: everything is already everywhere."""

    def sum(self, buffer: Tensor) -> None:
        """The sum over one member."""

    def max(self, buffer: Tensor) -> None:
        """The maximum over one member."""

    def broadcast(self, buffer: Tensor) -> None:
        """Rank 0 is this member."""


_ABANDONED = object()
_MOST_BYTES = 1 << 30
"""Of one operation: gloo is trusted with no counts near 2^31, and its timeout is then for this much."""


class GlooGroup:
    """One `ProcessGroupGloo` of one membership epoch.

    Args:
        timeout_seconds: bound on one operation.
    """

    def __init__(self, timeout_seconds: float) -> None:
        # gloo cannot be interrupted: after ProcessGroupGloo.abort a waiting all-reduce still sits out its timeout
        # (torch 2.13). So the end of an operation and the order to give it up come in one queue, and the caller
        # follows whichever is first.
        self._signals: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._timeout_seconds = timeout_seconds
        self._group: Any = None

    def connect(self, store: _Store, rank: int, size: int, host: str) -> None:
        """Meet the other members.

        Args:
            store: where the members meet.
            rank: this member.
            size: how many there are.
            host: address of the interface that gloo binds; gloo asks for no token, so never a public one.

        Raises:
            ExchangeFailed: somebody did not come in time, or the group was abandoned.
        """
        options = dist.ProcessGroupGloo._Options()
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
        options._timeout = timedelta(seconds=self._timeout_seconds)

        def meet() -> None:
            try:
                self._signals.put(dist.ProcessGroupGloo(store, rank, size, options))
            except Exception as error:  # handed to the caller, who raises it
                self._signals.put(error)

        # The constructor waits for all members. Where it is given up, it ends by itself on its thread, and the
        # group that it still may make lies in a queue that nobody reads and goes with it.
        threading.Thread(target=meet, name="gloo-connect", daemon=True).start()
        self._group = self._next_signal("meeting the other workers")

    def abandon(self) -> None:
        """Wake whoever waits in this group; it may be called from any thread."""
        self._signals.put(_ABANDONED)

    def drop(self) -> None:
        """Close the sockets, whoever still refers to this object."""
        self._group = None

    def sum(self, buffer: Tensor) -> None:
        """See `AllReduce.sum`."""
        self._run(lambda piece: self._group.allreduce([piece]), buffer)

    def max(self, buffer: Tensor) -> None:
        """See `AllReduce.max`."""
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MAX
        self._run(lambda piece: self._group.allreduce([piece], options), buffer)

    def broadcast(self, buffer: Tensor) -> None:
        """See `AllReduce.broadcast`."""
        if buffer.numel():
            options = dist.BroadcastOptions()
            options.rootRank = 0
            self._run(lambda piece: self._group.broadcast([piece], options), buffer)

    def _run(self, begin: Callable[[Tensor], Any], buffer: Tensor) -> None:
        # One after the other: all members cut alike, and pieces in flight together gain nothing (docs/log.md).
        for piece in buffer.split(_MOST_BYTES // buffer.element_size()):
            self._run_one(begin, piece)

    def _run_one(self, begin: Callable[[Tensor], Any], buffer: Tensor) -> None:
        try:
            work = begin(buffer)
        except RuntimeError as error:
            raise ExchangeFailed(f"the exchange could not begin: {_first_line(error)}") from error
        # What comes is the finished Future: its wait() raises the operation's error in this thread.
        work.get_future().add_done_callback(self._signals.put)
        try:
            self._next_signal("exchanging weights").wait()
        except ExchangeFailed:
            # It goes on in gloo's thread, reading and writing the buffer, which must not be freed under it.
            _leave_behind(self._group, work, buffer)
            raise
        except RuntimeError as error:
            raise ExchangeFailed(f"a peer was lost while exchanging weights: {_first_line(error)}") from error

    def _next_signal(self, doing: str) -> Any:
        try:
            signal = self._signals.get(timeout=self._timeout_seconds)
        except queue.Empty:
            raise ExchangeFailed(f"no answer from a peer in {self._timeout_seconds:g} s while {doing}") from None
        if signal is _ABANDONED:
            raise ExchangeFailed(f"a peer died while {doing}")
        if isinstance(signal, Exception):
            raise ExchangeFailed(f"{doing} failed: {_first_line(signal)}") from signal
        return signal


def _first_line(error: BaseException) -> str:
    """What gloo says, without the place in its source and the advice that follow every message."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"^\[[^\]]*\]\s*", "", text.splitlines()[0]).partition(". This is typically")[0]


def _leave_behind(group: Any, work: Any, buffer: Tensor) -> None:
    """Keep what an uninterruptible operation uses alive until it has ended by itself."""

    def outlast() -> None:
        with contextlib.suppress(RuntimeError):  # given up before: only that it has ended is of interest
            work.wait()
        kept.clear()

    kept: list[object] = [group, work, buffer]
    threading.Thread(target=outlast, name="gloo-left-behind", daemon=True).start()


class Groups:
    """This worker's group of the current membership epoch.

    Args:
        rendezvous: where groups meet.
        host: address that gloo binds and peers connect to.
        timeout_seconds: bound on one operation.
    """

    def __init__(self, rendezvous: Rendezvous, *, host: str, timeout_seconds: float) -> None:
        self._rendezvous = rendezvous
        self._host = host
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._epoch = -1
        self._group: GlooGroup | None = None
        self._aborted_epoch = -1

    def enter(self, epoch: int, rank: int, size: int) -> AllReduce:
        """The group of `epoch`, kept from last time or made now.

        Raises:
            ExchangeFailed: it could not be made, or the epoch is already given up.
        """
        if size == 1:
            self.leave()
            return SoloGroup()
        with self._lock:
            if self._group is not None and self._epoch == epoch and self._aborted_epoch < epoch:
                return self._group
        # The old sockets close first: a peer may still wait on them before it comes to the new meeting.
        self.leave()
        store = _Store(self._rendezvous, f"epoch{epoch}", min(30.0, self._timeout_seconds))
        group = GlooGroup(self._timeout_seconds)
        with self._lock:
            # The order to give up may have come before there was a group to give up.
            if self._aborted_epoch >= epoch:
                raise ExchangeFailed(f"membership epoch {epoch} is already given up")
            self._epoch, self._group = epoch, group
        # Known to `abort` before it connects, and without the lock, which `abort` needs to wake this very wait.
        group.connect(store, rank, size, self._host)
        return group

    def abort(self, epoch: int) -> None:
        """Give up all groups up to `epoch`; called by the heartbeat thread."""
        with self._lock:
            self._aborted_epoch = max(self._aborted_epoch, epoch)
            if self._group is not None and self._epoch <= epoch:
                self._group.abandon()

    def leave(self) -> None:
        """Drop the group at once: its sockets close, which frees peers that still wait for this worker."""
        # Not where an operation was left behind, which keeps them open until it ends: those peers are freed by the
        # abort that their heartbeats bring.
        with self._lock:
            if self._group is not None:
                self._group.drop()
            self._group = None
