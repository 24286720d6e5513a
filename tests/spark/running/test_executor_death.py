"""Executors are processes of their own: one whose Java machine is killed costs its worker's open round."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from pyspark.sql import SparkSession

from digits import BAR, Story, assert_rounds_in_order, open_test_session, run_digits

pytestmark = [pytest.mark.spark, pytest.mark.chaos]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SparkSession]:
    session = open_test_session("local-cluster[2,1,1024]", spark_executor_memory="512m")
    yield session
    session.stop()


def kill_executor_of(story: Story, slot: int) -> Callable[[], None]:
    """Kill the Java machine that the slot's Python worker belongs to."""

    def fault() -> None:
        parents = psutil.Process(story.pids[slot]).parents()
        java = next(parent for parent in parents if "java" in parent.name())
        assert "CoarseGrainedExecutorBackend" in " ".join(java.cmdline())
        java.kill()

    return fault


def test_a_killed_executor_does_not_end_the_run(cluster: SparkSession, tmp_path: Path) -> None:
    story = Story()
    story.at_round("kill", 15, kill_executor_of(story, 1))
    result = run_digits(cluster, tmp_path / "run", story, "run.rounds=500", "run.eval_every=100")
    assert "kill" in story.fired
    assert result.accuracy >= BAR
    assert_rounds_in_order(story, 500)
    assert story.stillness("kill") < 4
    assert [event["slot"] for event in story.of("worker_lost")] == [1]
