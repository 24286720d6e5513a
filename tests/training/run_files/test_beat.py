"""What is done beside a run, again and again: when asked, when it is time, and never after it failed or ended."""

import threading

import pytest

from sparknet.training.run_files.beat import Beat

PATIENCE_SECONDS = 30.0
NEVER_SECONDS = 3600.0


class Action:
    """Counts its calls, and may be held in the middle of one."""

    def __init__(self):
        self.calls = 0
        self.error = None
        self.began, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.held = False

    def __call__(self):
        self.calls += 1
        self.began.release()
        if self.held:
            assert self.go.acquire(timeout=PATIENCE_SECONDS)
        if self.error:
            raise self.error


@pytest.fixture
def action():
    return Action()


def beat_of(action, seconds=NEVER_SECONDS, on_error=lambda: None):
    return Beat(action, every_seconds=seconds, name="test-beat", on_error=on_error)


def test_it_is_done_when_it_is_time(action):
    beat = beat_of(action, seconds=0.01)
    for _ in range(3):
        assert action.began.acquire(timeout=PATIENCE_SECONDS)
    beat.end()
    assert action.calls >= 3


def test_it_is_not_done_before(action):
    beat_of(action).end()
    assert action.calls == 0


def test_what_is_asked_while_it_is_being_done_is_done_once_more(action):
    action.held = True
    beat = beat_of(action)
    beat.nudge()
    assert action.began.acquire(timeout=PATIENCE_SECONDS)
    beat.nudge()
    beat.nudge()
    action.held = False
    action.go.release()
    beat.catch_up()
    assert action.calls == 2
    beat.end()


def test_catching_up_waits_for_a_call_that_began_afterwards(action):
    action.held = True
    beat = beat_of(action)
    beat.nudge()
    assert action.began.acquire(timeout=PATIENCE_SECONDS)
    waiting = threading.Thread(target=beat.catch_up)
    waiting.start()
    action.go.release()
    assert action.began.acquire(timeout=PATIENCE_SECONDS), "the call from before was taken for it"
    assert waiting.is_alive()
    action.go.release()
    waiting.join(PATIENCE_SECONDS)
    assert not waiting.is_alive()
    beat.end()


def test_a_failure_is_told_and_raised_and_ends_it(action):
    told = threading.Event()
    action.error = ValueError("no")
    beat = beat_of(action, on_error=told.set)
    beat.nudge()
    assert told.wait(PATIENCE_SECONDS)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            beat.catch_up()
    beat.end()
    assert action.calls == 1


def test_the_end_waits_for_what_is_being_done(action):
    action.held = True
    beat = beat_of(action)
    beat.nudge()
    assert action.began.acquire(timeout=PATIENCE_SECONDS)
    action.go.release()
    beat.end()
    assert not any(thread.name == "test-beat" for thread in threading.enumerate())
