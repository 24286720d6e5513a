"""Trying again what a network or a busy server broke: exponential backoff with full jitter."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sparknet.data.storage.remedies import is_transient

__all__ = ["Backoff"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """How often and after which pauses a failed request is made again."""

    attempts: int = 6
    """Requests in all, the first one included."""
    first_seconds: float = 0.25
    """Bound of the first pause; each further one is twice as long."""
    most_seconds: float = 8.0
    """No pause is longer."""
    sleep: Callable[[float], None] = time.sleep
    """Waits for so many seconds."""
    draw: Callable[[], float] = random.SystemRandom().random
    """Uniform in [0, 1)."""
    # The system's: workers are forks of one daemon, and a generator copied by a fork would make them pause alike.

    def run(self, action: Callable[[], T]) -> T:
        """Call `action` until it succeeds, fails for good or has been called `attempts` times.

        Raises:
            OSError: the last one that `action` raised.
        """
        for failures in range(self.attempts - 1):
            try:
                return action()
            except OSError as error:
                if not is_transient(error):
                    raise  # a missing file or a refusal stays one, and the user should hear of it at once
            # Full jitter: tasks that failed at the same moment must not come back at the same moment.
            self.sleep(self.draw() * min(self.most_seconds, self.first_seconds * 2**failures))
        return action()
