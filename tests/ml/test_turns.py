"""Fits of one session share its cores."""

import threading

import pytest

from sparknet.errors import ConfigError
from sparknet.ml import turns


class Context:
    master = "local[2]"
    defaultParallelism = 2


class Session:
    """All that turns look at of a session."""

    sparkContext = Context()


def test_fits_that_need_all_cores_go_one_after_the_other():
    session, inside, most = Session(), threading.Lock(), []

    def fit():
        with turns.turn_of(session, 2):
            most.append(inside.acquire(blocking=False))
            # Long enough for the others to come, and not needed for the answer.
            threading.Event().wait(0.05)
            inside.release()

    threads = [threading.Thread(target=fit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [True] * 4


def test_fits_that_fit_go_together():
    session, met = Session(), threading.Barrier(2)

    def fit():
        with turns.turn_of(session, 1):
            met.wait(30)

    threads = [threading.Thread(target=fit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not met.broken


def test_a_fit_that_fails_gives_its_cores_back():
    session = Session()
    with pytest.raises(RuntimeError, match="mine"), turns.turn_of(session, 2):
        raise RuntimeError("mine")
    with turns.turn_of(session, 2):
        pass


def test_more_workers_than_an_embedded_session_has_cores_are_refused():
    with pytest.raises(ConfigError, match=r"numWorkers is 3 and this session, local\[2\], runs 2 tasks"):
        turns.turn_of(Session(), 3).__enter__()
