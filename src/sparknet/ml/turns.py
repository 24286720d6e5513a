"""Fits of one session take turns where its cores are not enough for all of them.

Cross-validation fits several models at once. Two fits that share the cores of one would each wait for workers that
the other keeps from coming.
"""

import os
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from pyspark.sql import SparkSession
from pyspark.sql.utils import is_remote

from sparknet.errors import ConfigError

__all__ = ["turn_of"]


class _Cores:
    """The cores of a session, of which fits take some; who came first is served first."""

    def __init__(self, count: int | None) -> None:
        self.count = count
        self._changed = threading.Condition()
        self._taken = 0
        self._waiting: list[object] = []

    @contextmanager
    def taken(self, wanted: int) -> Generator[None]:
        # Where nobody can say how many there are, one fit goes alone.
        need, room = (1, 1) if self.count is None else (min(wanted, self.count), self.count)
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and self._taken + need <= room)
            finally:  # an interrupt too takes it out of the line
                self._waiting.remove(ticket)
                self._changed.notify_all()
            self._taken += need
        try:
            yield
        finally:
            with self._changed:
                self._taken -= need
                self._changed.notify_all()


_cores: WeakKeyDictionary[object, _Cores] = WeakKeyDictionary()
"""By application: sessions of one share its cores."""
_lock = threading.Lock()


@contextmanager
def turn_of(spark: SparkSession, workers: int) -> Generator[None]:
    """Hold cores for so many workers while the block runs.

    Raises:
        ConfigError: an embedded session has fewer cores, and always will.
    """
    application = spark if is_remote() else spark.sparkContext
    with _lock:
        cores = _cores.setdefault(application, _Cores(_count(spark)))
    if cores.count is not None and workers > cores.count:
        raise ConfigError(
            f"numWorkers is {workers} and this session, {spark.sparkContext.master}, runs {cores.count} tasks at a "
            "time, and each worker is one: set numWorkers to fewer, or open the session with more cores"
        )
    with cores.taken(workers):
        yield


def _count(spark: SparkSession) -> int | None:
    """Tasks that an embedded session runs at a time; None of others, whose executors come and go."""
    master = "" if is_remote() else str(spark.sparkContext.master)
    found = re.fullmatch(r"local(?:\[(\d+|\*)(?:,\s*\d+)?\])?", master)
    if found is None:
        return None
    cores = os.cpu_count() or 1 if found[1] == "*" else int(found[1] or 1)
    return max(1, cores // int(spark.conf.get("spark.task.cpus", "1") or 1))
