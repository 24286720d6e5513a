"""Stand-ins at the package's own Protocols: a group in memory, a driver in memory with the time given to it."""

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from sparknet.errors import ClusterError
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.messages import Answer, Failed, Heartbeat, Pulse, Question
from sparknet.training.sync.gloo_groups import ExchangeFailed
from sparknet.training.sync.pieces import Bytes, Streamed, cut

PATIENCE_SECONDS = 60.0
"""What a test waits before it fails; nothing ever waits so long when all is well."""


def together(*actions: Callable[[], object]) -> list:
    """Run the actions at the same time; their results, or the first error."""
    with ThreadPoolExecutor(len(actions)) as pool:
        futures = [pool.submit(action) for action in actions]
        return [future.result(PATIENCE_SECONDS) for future in futures]


class MemoryGroup:
    """Members of one group in one process; each is an `AllReduce` and belongs to a thread of its own.

    Args:
        size: how many members there are.
        break_after: the group breaks instead of the operation after so many, as when a peer dies.
    """

    def __init__(self, size: int, *, break_after: int | None = None) -> None:
        self.members = [Member(self, rank) for rank in range(size)]
        self.break_after = break_after
        self.given: list[torch.Tensor] = [torch.empty(0)] * size
        self.barrier = threading.Barrier(size)

    def break_off(self) -> None:
        """Every operation of every member fails from now on."""
        self.barrier.abort()


class Member:
    """One member's `AllReduce`."""

    def __init__(self, group: MemoryGroup, rank: int) -> None:
        self._group = group
        self._rank = rank
        self.operations = 0

    def sum(self, buffer: torch.Tensor) -> None:
        self._run(buffer, lambda given: torch.stack(given).sum(0))

    def max(self, buffer: torch.Tensor) -> None:
        self._run(buffer, lambda given: torch.stack(given).amax(0))

    def broadcast(self, buffer: torch.Tensor) -> None:
        self._run(buffer, lambda given: given[0].clone())

    def _run(self, buffer: torch.Tensor, combine: Callable[[list[torch.Tensor]], torch.Tensor]) -> None:
        group = self._group
        if self.operations == group.break_after:
            group.break_off()
        self.operations += 1
        group.given[self._rank] = buffer
        try:
            group.barrier.wait(PATIENCE_SECONDS)  # all have given
            result = combine(group.given)
            group.barrier.wait(PATIENCE_SECONDS)  # all have read
        except threading.BrokenBarrierError as error:
            buffer.fill_(77)  # what a broken all-reduce leaves behind is not defined
            raise ExchangeFailed("a peer died while exchanging weights") from error
        buffer.copy_(result)


class MemoryGroups:
    """What one worker has for `Groups`: members of groups in memory that all workers see.

    Args:
        network: groups by membership epoch, one dictionary for all workers.
        lock: guards `network`.
    """

    def __init__(self, network: dict[int, MemoryGroup], lock: threading.Lock) -> None:
        self._network = network
        self._lock = lock
        self._entered: list[MemoryGroup] = []
        self.entered: list[tuple[int, int, int]] = []
        """(epoch, rank, size) of every call."""

    def enter(self, epoch: int, rank: int, size: int) -> Member:
        with self._lock:
            group = self._network.setdefault(epoch, MemoryGroup(size))
            assert len(group.members) == size, f"epoch {epoch} has {len(group.members)} members, not {size}"
        self._entered.append(group)
        self.entered.append((epoch, rank, size))
        return group.members[rank]

    def abort(self, epoch: int) -> None:
        with self._lock:
            for number, group in self._network.items():
                if number <= epoch and group in self._entered:
                    group.break_off()

    def leave(self) -> None:
        """Closing one member's sockets ends the operations of all."""


class MemoryDriver:
    """A `Driver` in one process: a coordinator, a lock, and a clock that stands still until it is told to go on.

    Args:
        coordinator: decides.

    Attributes:
        checkpoints: what was put, by round.
        before: called with every question in the thread of the worker that asks; may raise, to kill it there.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.checkpoints: dict[int, dict[str, bytes]] = {}
        self.before: Callable[[Question], None] = lambda question: None
        self.events: list[dict[str, object]] = []
        self.now = 0.0
        self._changed = threading.Condition()
        self._serial = 0
        self._published: dict[str, bytes] = {}

    def ask(self, request: Question) -> Answer:
        self.before(request)

        def answer() -> Answer | None:
            return self.coordinator.answer_for(request.slot, request.attempt)

        with self._changed:
            self._serial += 1
            self.coordinator.receive(replace(request, serial=self._serial), self.now)
            self._look()
            assert self._changed.wait_for(lambda: answer() is not None, PATIENCE_SECONDS), f"no answer to {request}"
            found = answer()
            assert found is not None
            return found

    def tell(self, message: Heartbeat | Failed) -> Pulse:
        with self._changed:
            self.coordinator.receive(message, self.now)
            self._look()
            return self.coordinator.pulse_for(message.slot, message.attempt)

    def passes(self, seconds: float, *, alive: Iterable[tuple[int, int]]) -> None:
        """Let time pass while these (slot, attempt) beat."""
        alive = list(alive)
        for _ in range(round(seconds / 0.25)):
            with self._changed:
                self.now += 0.25
                for slot, attempt in alive:
                    self.coordinator.receive(Heartbeat(slot=slot, attempt=attempt), self.now)
                self.coordinator.tick(self.now)
                self._look()

    def stop(self, reason: str) -> None:
        with self._changed:
            self.coordinator.stop(reason)
            self._look()

    def put_checkpoint(self, round: int, files: Mapping[str, Bytes | Streamed]) -> None:
        with self._changed:
            assert round == self.coordinator.round
            self.checkpoints[round] = {name: b"".join(cut(data, 1 << 20)) for name, data in files.items()}

    def fetch_checkpoint(self, round: int) -> dict[str, memoryview]:
        return {name: memoryview(bytearray(data)) for name, data in self.checkpoints[round].items()}

    def publish(self, key: str, value: bytes) -> None:
        with self._changed:
            self._published[key] = value
            self._changed.notify_all()

    def fetch(self, key: str, timeout_seconds: float) -> bytes:
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._published, timeout_seconds):
                raise ClusterError(f"no worker left its address as {key} in {timeout_seconds:g} s")
            return self._published[key]

    def _look(self) -> None:
        self.events += self.coordinator.drain_events()
        self._changed.notify_all()


def flatten(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """All values as one float64 vector."""
    return torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])
