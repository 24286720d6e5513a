"""The heartbeat thread, with a beat that the test holds in its hand."""

import queue
import threading
import time

import pytest

from sparknet.errors import ClusterError
from sparknet.training.coordination.messages import Pulse
from sparknet.training.worker.heartbeat import Heartbeats

FINE = Pulse(aborted_epoch=-1, end=False)
SECONDS = 10.0


class Driver:
    """Answers beats in order from `script`, then for ever with its last entry."""

    def __init__(self, *script):
        self.script = list(script)
        self.beats = threading.Semaphore(0)
        self.aborted = queue.SimpleQueue()

    def beat(self):
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.beats.release()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def heartbeats(self, timeout_seconds=0.08):
        return Heartbeats(self.beat, self.aborted.put, timeout_seconds)

    def wait_for(self, beats):
        for _ in range(beats):
            assert self.beats.acquire(timeout=SECONDS)


LOST = ClusterError("no route to the driver")


def test_it_beats_again_and_again_and_several_times_per_timeout():
    driver = Driver(FINE)
    with driver.heartbeats(timeout_seconds=0.4) as beats:
        began = time.monotonic()
        driver.wait_for(8)
        assert time.monotonic() - began < 5.0
        assert not beats.ended.is_set()


def test_after_leaving_it_beats_no_more():
    driver = Driver(FINE)
    with driver.heartbeats() as beats:
        driver.wait_for(1)
    assert not beats._thread.is_alive()
    assert not beats.ended.is_set()


def test_an_aborted_epoch_is_told_once():
    script = [FINE, *[Pulse(aborted_epoch=3, end=False)] * 3, Pulse(aborted_epoch=5, end=False)]
    driver = Driver(*script, Pulse(aborted_epoch=5, end=False))
    with driver.heartbeats():
        driver.wait_for(9)
    assert [driver.aborted.get_nowait(), driver.aborted.get_nowait()] == [3, 5]
    assert driver.aborted.empty()


def test_the_end_is_told_and_frees_every_group():
    driver = Driver(FINE, Pulse(aborted_epoch=2, end=True))
    with driver.heartbeats() as beats:
        assert beats.ended.wait(SECONDS)
        assert driver.aborted.get(timeout=SECONDS) > 10**9
    assert not beats.driver_lost


def test_a_driver_that_is_silent_for_twice_the_timeout_is_lost():
    driver = Driver(FINE, LOST)
    with driver.heartbeats(timeout_seconds=0.2) as beats:
        driver.wait_for(1)
        began = time.monotonic()
        assert beats.ended.wait(SECONDS)
        assert 0.3 < time.monotonic() - began < 5.0
        assert beats.driver_lost
        assert driver.aborted.get(timeout=SECONDS) > 10**9


def test_some_lost_beats_are_no_loss_of_the_driver():
    driver = Driver(FINE, LOST, LOST, FINE, LOST, LOST, LOST, FINE)
    with driver.heartbeats(timeout_seconds=4.0) as beats:
        driver.wait_for(2)
        assert not beats.ended.is_set()
    driver = Driver(*[LOST, LOST, FINE] * 8, FINE)
    with driver.heartbeats(timeout_seconds=0.5) as beats:
        driver.wait_for(24)
        assert not beats.ended.is_set()
        assert not beats.driver_lost


def test_it_ends_when_the_block_ends_with_an_error():
    driver = Driver(FINE)
    beats = driver.heartbeats()
    with pytest.raises(RuntimeError, match="training failed"), beats:
        raise RuntimeError("training failed")
    assert not beats._thread.is_alive()
