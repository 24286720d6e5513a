"""Stand-ins at the package's own Protocols: a group in memory, a driver in memory with the time given to it."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

from sparknet.errors import ClusterError
from sparknet.training.process_group import ExchangeFailed

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


class MemoryRendezvous:
    """A `Rendezvous` in one process."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def publish(self, key: str, value: bytes) -> None:
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def fetch(self, key: str, timeout_seconds: float) -> bytes:
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, timeout_seconds):
                raise ClusterError(f"no worker left its address as {key} in {timeout_seconds:g} s")
            return self._values[key]


def flatten(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """All values as one float64 vector."""
    return torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])
