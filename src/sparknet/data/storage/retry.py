"""Trying again what a network or a busy server broke: exponential backoff with full jitter."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from sparknet.data.storage.remedies import is_transient

__all__ = ["Patience", "retried"]

T = TypeVar("T")

ATTEMPTS = 6
"""Requests in all, the first one included."""
FIRST_SECONDS, MOST_SECONDS = 0.25, 8.0
"""Bounds of the first pause and of any; each is twice as long as the one before."""

OUTAGE_SECONDS = 60.0
"""How long a worker bears that shards do not come: servers that restart or fail over are back by then, and others
that wait for it in an exchange do so for minutes."""
_AGAIN_SECONDS = 1.0

pause = time.sleep
# The system's random numbers: workers are forks of one daemon, and a generator that a fork copied would make them
# pause alike.
draw = random.SystemRandom().random


def retried(action: Callable[[], T]) -> T:
    """Call `action` until it succeeds, fails for good or has been called `ATTEMPTS` times.

    Raises:
        OSError: the last one that `action` raised.
    """
    for failures in range(ATTEMPTS - 1):
        try:
            return action()
        except OSError as error:
            if not is_transient(error):
                raise  # a missing file or a refusal stays one, and the user should hear of it at once
        # Full jitter: tasks that failed at the same moment must not come back at the same moment.
        pause(draw() * min(MOST_SECONDS, FIRST_SECONDS * 2**failures))
    return action()


class Patience:
    """Bears an outage of `OUTAGE_SECONDS`, counted from the first failure since something arrived."""

    def __init__(self) -> None:
        self._until: float | None = None

    def arrived(self) -> None:
        """There is no outage, or not any more."""
        self._until = None

    def lasts(self) -> bool:
        """After a failure: wait a moment, and say that it is worth another try; or that it is not."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + OUTAGE_SECONDS
        if now >= self._until:
            return False
        pause(draw() * _AGAIN_SECONDS)
        return True
