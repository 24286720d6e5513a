"""What a worker needs of the driver: the one Protocol between the training loop and the network."""

from collections.abc import Mapping
from typing import Protocol

from sparknet.training.coordination.messages import Answer, Failed, Heartbeat, Pulse, Question
from sparknet.training.sync.pieces import Bytes, Streamed

__all__ = ["Driver"]


class Driver(Protocol):
    """The driver as a worker sees it; every call raises ClusterError when the driver cannot be reached."""

    def ask(self, request: Question) -> Answer:
        """Send a request and wait until it is decided."""
        ...

    def tell(self, message: Heartbeat | Failed) -> Pulse:
        """Send what is answered at once."""
        ...

    def put_checkpoint(self, round: int, files: Mapping[str, Bytes | Streamed]) -> None:
        """Hand the files of a checkpoint over, piece by piece; on return they are on the driver's disk."""
        ...

    def fetch_checkpoint(self, round: int) -> dict[str, memoryview]:
        """The files of a checkpoint, in memory that may be written."""
        ...

    def publish(self, key: str, value: bytes) -> None:
        """Store a value for the other workers (`Rendezvous`)."""
        ...

    def fetch(self, key: str, timeout_seconds: float) -> bytes:
        """Wait for another worker's value (`Rendezvous`)."""
        ...
