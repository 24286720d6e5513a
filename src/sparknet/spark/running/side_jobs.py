"""What is done beside a run, one job at a time on a thread of its own: watching the run never waits for it."""

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

from sparknet.training.run_files.run_hook import SideJob

__all__ = ["DONE", "SideJobs"]

DONE = "side_job_done"
"""The event that says that there is something to `collect`; it is for the loop and is not told to anybody."""


class SideJobs:
    """Runs jobs, in the order in which they come, until the `with` statement ends.

    What jobs tell is collected by the thread that tells events, since observers are called there and nowhere else.

    Args:
        put: hands the event `DONE` to that thread.
    """

    def __init__(self, put: Callable[[dict[str, object]], None]) -> None:
        self._put = put
        self._changed = threading.Condition()
        self._waiting = deque[SideJob]()
        self._told: list[dict[str, object]] = []
        self._error: BaseException | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="side-jobs", daemon=True)
        self._thread.start()

    def submit(self, job: SideJob) -> None:
        """Have a job done after those that wait already."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def collect(self) -> list[dict[str, object]]:
        """The events since the last call.

        Raises:
            Exception: what a job has raised.
        """
        with self._changed:
            told, self._told = self._told, []
            error, self._error = self._error, None
        if error is not None:
            raise error
        return told

    def finish(self) -> list[dict[str, object]]:
        """Wait for the jobs that there are; the events since the last call.

        Raises:
            Exception: what a job has raised.
        """
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join()
        return self.collect()

    def __enter__(self) -> "SideJobs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the job that is being done; what it raises now becomes a note of the error that ends the run."""
        with self._changed:
            # Unlike `finish`, which lets those that wait be done: after an error nothing more is begun.
            self._ending = True
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()
        if error is not None and self._error is not None:
            error.add_note(f"and beside the run: {self._error}")

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                event = job()
            except BaseException as error:  # raised again by the thread that collects
                with self._changed:
                    # Nothing more is begun: this error is about to end the run.
                    self._error, self._ending = error, True
                    self._waiting.clear()
            else:
                with self._changed:
                    self._told.append(dict(event))
            # The thread that tells sleeps on its queue and would learn of this only with the next event.
            self._put({"event": DONE})

    def _next(self) -> SideJob | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            # What waits comes before the end: None is given only when there is nothing left to do.
            return self._waiting.popleft() if self._waiting else None
