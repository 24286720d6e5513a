"""Trying again what a network or a busy server broke: exponential backoff with full jitter."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from sparknet.data.storage.remedies import is_transient

__all__ = ["retried"]

T = TypeVar("T")

ATTEMPTS = 6
"""Requests in all, the first one included."""
FIRST_SECONDS, MOST_SECONDS = 0.25, 8.0
"""Bounds of the first pause and of any; each is twice as long as the one before."""

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
