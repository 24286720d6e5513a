"""The whole path on real digits, with real Spark workers: accuracy, repeatability, and every kind of death."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from digits import BAR, Story, assert_rounds_in_order, open_test_session, run_digits
from pyspark.sql import SparkSession
from safetensors.numpy import load_file

pytestmark = pytest.mark.spark

PATIENT = "cluster.heartbeat_timeout_seconds=20.0"
"""For runs without faults: a loaded test machine must not count as a silent worker."""


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    session = open_test_session("local[2,16]")
    yield session
    session.stop()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_workers_reach_the_bar(spark: SparkSession, tmp_path: Path, seed: int) -> None:
    story = Story()
    result = run_digits(spark, tmp_path / "run", story, f"run.seed={seed}", PATIENT)
    assert result.accuracy >= BAR
    assert result.rounds == 80
    assert result.samples == 80 * 2 * 10 * 32
    assert_rounds_in_order(story, 80)
    assert [event["round"] for event in story.of("evaluation")] == list(range(10, 81, 10))
    (started,) = story.of("run_started")
    assert {event["rows"] for event in story.of("evaluation")} == {started["validation_rows"]}
    assert started["validation_rows"] + started["training_rows"] == 1797


def test_the_same_seed_gives_the_same_bits(spark: SparkSession, tmp_path: Path) -> None:
    settings = ("run.rounds=12", "sync.strategy=diloco", PATIENT)
    first = run_digits(spark, tmp_path / "a", Story(), *settings)
    again = run_digits(spark, tmp_path / "b", Story(), *settings)
    other = run_digits(spark, tmp_path / "c", Story(), *settings, "run.seed=7")
    assert first.weights_hash == again.weights_hash != other.weights_hash
    weights = [load_file(tmp_path / run / "model" / "weights.safetensors") for run in ("a", "b")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_a_killed_worker_costs_its_open_round_only(spark: SparkSession, tmp_path: Path) -> None:
    story = Story()
    round = random.Random(tmp_path.name).randrange(10, 60)
    slot = round % 2
    story.at_round("kill", round, story.kill(slot))
    result = run_digits(spark, tmp_path / "run", story, "run.rounds=120")
    assert "kill" in story.fired
    assert result.accuracy >= BAR
    assert result.failures == 1
    assert_rounds_in_order(story, 120)
    assert story.stillness("kill") < 3
    assert story.back_after("kill", slot) < 6
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
    assert story.stillness("stop") < 6
    assert any(event["slot"] == 0 and "silent" in event["reason"] for event in story.of("worker_lost"))
    assert story.back_after("stop", 0) < 15, "the hung task was not replaced"


def test_strategy_none_trains_each_by_itself(spark: SparkSession, tmp_path: Path) -> None:
    story = Story()
    result = run_digits(spark, tmp_path / "run", story, "sync.strategy=none", "run.rounds=30", PATIENT)
    assert result.accuracy >= 0.9
    assert_rounds_in_order(story, 30)


def test_balanced_pace_and_one_thread_more(spark: SparkSession, tmp_path: Path) -> None:
    result = run_digits(
        spark, tmp_path / "run", Story(), "sync.pace=balanced", "sync.inner_state=reset", "run.rounds=40", PATIENT
    )
    assert result.accuracy >= BAR
