"""A worker's heartbeat: tells the driver that it lives, and hears what cannot wait for the next request."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

from sparknet.errors import ClusterError
from sparknet.training.coordination.messages import Pulse

__all__ = ["Ending", "Heartbeats"]

# Above any epoch that a run comes to.
_EVERY_EPOCH = 2**62


class Ending(threading.Event):
    """Set when there is no use in going on; a device that is no longer the worker's counts as such.

    Args:
        device_valid: asked whenever somebody looks: a process that was stopped for a while learns of it at its next
            step, before any thread has had time to tell it.
    """

    def __init__(self, device_valid: Callable[[], bool] = lambda: True) -> None:
        super().__init__()
        self.device_valid = device_valid

    def is_set(self) -> bool:
        """Whether it was set, or the device was lost."""
        return super().is_set() or not self.device_valid()


class Heartbeats:
    """A thread that beats eight times per timeout.

    Args:
        beat: sends one heartbeat; raises ClusterError when the driver does not answer.
        on_abort: told the membership epoch up to which groups are to be dropped.
        timeout_seconds: silence after which the driver counts this worker as dead. A worker that itself hears
            nothing for twice as long takes the driver for lost, and ends.
        device_valid: whether the worker's device is still its own.

    Attributes:
        ended: set when the run is over for this worker, for whatever reason.
        driver_lost: whether the reason is that the driver does not answer.
    """

    def __init__(
        self,
        beat: Callable[[], Pulse],
        on_abort: Callable[[int], None],
        timeout_seconds: float,
        *,
        device_valid: Callable[[], bool] = lambda: True,
    ) -> None:
        self.ended = Ending(device_valid)
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
            if not self.ended.device_valid():
                self._end()
                return
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

    @property
    def broken(self) -> str:
        """Why this attempt must fail, so that another takes over; empty: it need not."""
        if self.driver_lost:
            return "the driver did not answer this worker's heartbeats; a new attempt takes over"
        if not self.ended.device_valid():
            return "this worker's lease of its GPU was lost; a new attempt takes another one"
        return ""

    def __enter__(self) -> "Heartbeats":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join(timeout=self._timeout_seconds)
