"""Fits of one session share its cores."""

import threading

import pytest

from sparknet.errors import ConfigError
from sparknet.ml import turns


class Context:
    master = "local[2,4]"


class Conf:
    def __init__(self, cpus):
        self._cpus = cpus

    def get(self, name, default):
        assert name == "spark.task.cpus"
        return self._cpus or default


class Session:
    """All that turns look at of a session."""

    def __init__(self, context=None, cpus=None):
        self.sparkContext = context or Context()
        self.conf = Conf(cpus)


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


def test_sessions_of_one_application_share_its_cores():
    context, ended = Context(), threading.Event()
    order = []

    def second():
        with turns.turn_of(Session(context), 2):
            order.append("second")
        ended.set()

    with turns.turn_of(Session(context), 1):
        thread = threading.Thread(target=second)
        thread.start()
        assert not ended.wait(0.2)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    ("master", "cpus", "tasks"),
    [("local", None, 1), ("local[3]", None, 3), ("local[6, 2]", "2", 3), ("spark://host:7077", None, None)],
)
def test_cores_are_those_of_an_embedded_session(master, cpus, tasks):
    context = Context()
    context.master = master
    assert turns._count(Session(context, cpus)) == tasks


def test_a_fit_that_fails_gives_its_cores_back():
    session = Session()
    with pytest.raises(RuntimeError, match="mine"), turns.turn_of(session, 2):
        raise RuntimeError("mine")
    with turns.turn_of(session, 2):
        pass


def test_more_workers_than_an_embedded_session_has_cores_are_refused():
    with pytest.raises(ConfigError, match=r"numWorkers is 3 and this session, local\[2,4\], runs 2 tasks"):
        turns.turn_of(Session(), 3).__enter__()
