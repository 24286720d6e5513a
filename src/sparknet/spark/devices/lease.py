"""A worker's right to one GPU of its host, and who gives such rights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Held", "Lease", "Leases"]


class Lease(Protocol):
    """The right to one GPU, until it is released or lost.

    Attributes:
        gpu: index or identifier of the GPU on its host, as CUDA_VISIBLE_DEVICES takes it.
        fence: rises with every lease of that GPU: who has the higher one is the later owner.
    """

    gpu: str
    fence: int

    @property
    def valid(self) -> bool:
        """Whether the GPU may still be used; once false it stays so."""
        ...

    def release(self) -> None:
        """Give the GPU back; may be called again."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A GPU of a host and who has it."""

    host: str
    gpu: str
    holder: str
    """What its owner said of itself; empty: it is free."""
    seconds: float
    """Since it was taken; 0 of a free one."""
    alive: bool
    """Its owner is there: its process runs, or its lease was renewed in time."""

    def __str__(self) -> str:
        return f"GPU {self.gpu} of {self.host}: {self.holder or 'free'}"


class Leases(Protocol):
    """Who hands out the GPUs of hosts."""

    def acquire(self, host: str, gpus: Sequence[str], *, holder: str, wait_seconds: float) -> Lease:
        """Take one of a host's GPUs that nobody has.

        Args:
            host: its name.
            gpus: what it has.
            holder: who takes it, for people.
            wait_seconds: how long to wait for one; 0: not at all.

        Raises:
            ClusterError: all are taken, by whom the message says; or whoever hands them out cannot be asked.
        """
        ...

    def held(self, host: str) -> list[Held]:
        """The GPUs of a host that were ever handed out.

        Raises:
            ClusterError: whoever hands them out cannot be asked.
        """
        ...

    def free(self, host: str, gpu: str) -> None:
        """Take a GPU from its owner, who may still be using it.

        Raises:
            ClusterError: it cannot be taken.
        """
        ...
