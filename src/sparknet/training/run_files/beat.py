"""Something that is done again and again beside a run, on a thread of its own."""

import threading
from collections.abc import Callable

__all__ = ["Beat"]


class Beat:
    """Calls an action every so many seconds, and when it is asked to, until it ends or the action fails.

    Args:
        action: what to do; what it raises is kept, and nothing more is done.
        every_seconds: the longest pause between two calls.
        name: of the thread.
        on_error: called on that thread when the action has failed.
    """

    def __init__(
        self, action: Callable[[], None], *, every_seconds: float, name: str, on_error: Callable[[], None]
    ) -> None:
        self._action = action
        self._every_seconds = every_seconds
        self._on_error = on_error
        self._changed = threading.Condition()
        self._asked = self._done = 0
        self._ending = False
        self.error: BaseException | None = None
        """What the action has raised."""
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def nudge(self) -> None:
        """Have it done now, or once more if it is being done."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def catch_up(self) -> None:
        """Have it done, and wait until that is so.

        Raises:
            BaseException: what the action has raised.
        """
        self.nudge()
        with self._changed:
            asked = self._asked
            self._changed.wait_for(lambda: self._done >= asked or self.error is not None)
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """Let what is being done be finished, and do nothing more."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while self._due():
            asked = self._asked  # what is asked from here on is not covered by this call
            try:
                self._action()
            except BaseException as error:  # for whoever asks, on another thread
                self.error = error
                self._on_error()
            with self._changed:
                self._done = asked
                self._changed.notify_all()

    def _due(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._asked > self._done or self._ending, self._every_seconds)
            return not self._ending and self.error is None
