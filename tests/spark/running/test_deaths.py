"""Workers die in every way, at a random round; how long the others stand still is measured.

Behind the marker `chaos`, which runs alone: the bars are for a machine that does nothing else.
"""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from digits import BAR, Story, assert_rounds_in_order, open_test_session, run_digits

pytestmark = [pytest.mark.spark, pytest.mark.chaos]

STILL_SECONDS = 3
BACK_SECONDS = 6


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    session = open_test_session("local[2]")
    yield session
    session.stop()


@pytest.mark.parametrize("slot", [0, 1])
def test_a_killed_worker_costs_its_open_round_only(spark: SparkSession, tmp_path: Path, slot: int) -> None:
    story = Story()
    round = random.SystemRandom().randrange(10, 60)
    story.at_round("kill", round, story.kill(slot))
    result = run_digits(spark, tmp_path / "run", story, "run.rounds=120")
    assert "kill" in story.fired
    assert result.accuracy >= BAR
    assert result.failures == 1
    assert_rounds_in_order(story, 120)
    assert story.stillness("kill") < STILL_SECONDS
    assert story.back_after("kill", slot) < BACK_SECONDS
    (lost,) = story.of("worker_lost")
    assert lost["slot"] == slot
    joined = [event for event in story.of("worker_joined") if event["heal"]]
    assert [event["slot"] for event in joined] == [slot]


def test_killed_in_the_last_round_nobody_trains_again(spark: SparkSession, tmp_path: Path) -> None:
    story = Story()
    story.at_round("kill", 79, story.kill(1))
    result = run_digits(spark, tmp_path / "run", story)
    assert "kill" in story.fired
    assert result.accuracy >= BAR
    assert result.rounds == 80
    assert_rounds_in_order(story, 80)
    assert not story.of("rollback")


def test_both_killed_at_once_go_on_from_the_checkpoint(spark: SparkSession, tmp_path: Path) -> None:
    story = Story()
    story.at_round("kill", 33, story.kill(0, 1))
    result = run_digits(spark, tmp_path / "run", story, "run.rounds=60")
    assert "kill" in story.fired
    assert result.accuracy >= BAR
    assert result.rounds == 60
    (rollback,) = story.of("rollback")
    assert rollback["to_round"] == 20
    after = [e["round"] for e in story.of("round") if e["time"] > rollback["time"]]
    assert after == list(range(21, 61))


def test_a_stopped_worker_does_not_stop_the_others(spark: SparkSession, tmp_path: Path) -> None:
    story = Story()
    story.at_round("stop", 20, story.kill(0, signal=signal.SIGSTOP))
    result = run_digits(spark, tmp_path / "run", story, "run.rounds=160")
    assert "stop" in story.fired
    assert result.accuracy >= BAR
    assert_rounds_in_order(story, 160)
    assert story.stillness("stop") < STILL_SECONDS
    assert any(event["slot"] == 0 and "silent" in event["reason"] for event in story.of("worker_lost"))
    assert story.back_after("stop", 0) < 15, "the hung task was not replaced"
