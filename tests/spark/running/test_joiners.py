"""A slot that waits for a core holds nobody up, and takes part as soon as a machine comes."""

import pytest

from digits import Story, open_test_session, run_digits
from standalone import Standalone

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(600)]


class Joined(Story):
    """Ends the run when worker 1 has taken part in a round."""

    def observe(self, record):
        super().observe(record)
        if record["event"] == "round" and record["slots"] == [0, 1]:
            raise KeyboardInterrupt


def test_a_machine_that_comes_later_gets_the_slot_that_waits(tmp_path):
    with Standalone(tmp_path, workers=[1]) as cluster:
        spark = open_test_session(cluster.url, spark_executor_memory="512m", spark_executor_cores="1")
        try:
            story = Joined()
            story.at_round("add", 5, lambda: cluster.add_worker(1))
            settings = ("run.rounds=100000", "run.eval_every=0", "run.checkpoint_every=10000")
            start = ("run.min_workers=1", "cluster.start_seconds=20.0")
            with pytest.raises(KeyboardInterrupt):
                run_digits(spark, tmp_path / "run", story, *settings, *start)
            (late,) = (event for event in story.of("worker_joined") if event["slot"] == 1)
            assert late["heal"]
            assert late["round"] >= 5
            assert not story.of("worker_lost"), "who waits for a core is not lost"
        finally:
            spark.stop()
