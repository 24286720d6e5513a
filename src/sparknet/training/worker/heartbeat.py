"""A worker's heartbeat: tells the driver that it lives, and hears what cannot wait for the next request."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

from sparknet.errors import ClusterError
from sparknet.training.coordination.messages import Pulse

__all__ = ["Heartbeats"]

# Above any epoch that a run comes to.
_EVERY_EPOCH = 2**62


class Heartbeats:
    """A thread that beats eight times per timeout.

    Args:
        beat: sends one heartbeat; raises ClusterError when the driver does not answer.
        on_abort: told the membership epoch up to which groups are to be dropped.
        timeout_seconds: silence after which the driver counts this worker as dead. A worker that itself hears
            nothing for twice as long takes the driver for lost, and ends.

    Attributes:
        ended: set when the run is over for this worker, for whatever reason.
        driver_lost: whether the reason is that the driver does not answer.
    """

    def __init__(self, beat: Callable[[], Pulse], on_abort: Callable[[int], None], timeout_seconds: float) -> None:
        self.ended = threading.Event()
        self.driver_lost = False
        self._beat = beat
        self._on_abort = on_abort
        self._timeout_seconds = timeout_seconds
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def _run(self) -> None:
        heard, aborted = time.monotonic(), -1
        # Eight beats to a timeout: a few that are late or lost must not count as a death.
        while not self._closing.wait(self._timeout_seconds / 8):
            try:
                pulse = self._beat()
            except ClusterError:
                # Twice the driver's own patience: it may have been held up itself, and forgives that time then.
                if time.monotonic() - heard > 2 * self._timeout_seconds:
                    self.driver_lost = True
                    self._end()
                    return
                continue
            heard = time.monotonic()
            if pulse.end:
                self._end()
                return
            # Told here and not as an answer: the main thread may be waiting in the very group that must be dropped.
            if pulse.aborted_epoch > aborted:
                aborted = pulse.aborted_epoch
                self._on_abort(aborted)

    def _end(self) -> None:
        # In this order: the main thread must find `ended` set when the group lets it go.
        self.ended.set()
        self._on_abort(_EVERY_EPOCH)  # whatever group waits, it waits in vain

    def __enter__(self) -> "Heartbeats":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join(timeout=self._timeout_seconds)
