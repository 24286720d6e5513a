"""Jobs that are given up end on the workers too, also in a session that is somebody else's."""

import os
import sys
import threading

import pytest
from pyspark.sql import SparkSession

from sparknet.errors import ClusterError
from sparknet.spark.jobs.jobs import TaggedJob, run_job

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark():
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2]").appName("test_tasks").config("spark.ui.enabled", "false")
    session = builder.config("spark.driver.host", "127.0.0.1").getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


def waiting(seconds):
    """A task that takes so long; workers cannot import this module, so it goes to them whole."""

    def wait(batches):
        threading.Event().wait(seconds)
        yield from batches

    return wait


def test_a_job_that_takes_too_long_is_cancelled(spark):
    frame = spark.range(0, 2, 1, 2).mapInArrow(waiting(120), "id bigint")
    ended = threading.Event()

    def job():
        try:
            frame.collect()
        finally:
            ended.set()

    with pytest.raises(ClusterError, match="waiting took more than 3 s"):
        run_job(spark, job, doing="waiting", limit_seconds=3)
    assert ended.wait(4), "the job itself has ended, not only our waiting for it"
    assert list(spark.sparkContext.statusTracker().getActiveJobsIds()) == []


def test_what_is_submitted_after_the_cancelling_is_cancelled_too(spark):
    frame = spark.range(0, 2, 1, 2).mapInArrow(waiting(120), "id bigint")
    may_submit = threading.Event()

    def work():
        assert may_submit.wait(30)
        frame.collect()

    job = TaggedJob(spark, work)
    assert not job.join(0.1)
    assert not job.cancel(0.0), "there is nothing to cancel yet"
    may_submit.set()
    assert job.cancel(30.0)
    with pytest.raises(Exception, match="cancelled"):
        job.result()
    assert list(spark.sparkContext.statusTracker().getActiveJobsIds()) == []


def test_other_jobs_of_the_session_go_on(spark):
    assert run_job(spark, lambda: spark.range(5).count(), doing="counting") == 5
    found = []
    mine = threading.Thread(
        target=lambda: found.append(spark.range(0, 4, 1, 2).mapInArrow(waiting(4), "id bigint").count())
    )
    mine.start()
    with pytest.raises(ClusterError):
        run_job(
            spark, spark.range(0, 2, 1, 2).mapInArrow(waiting(120), "id bigint").collect, doing="x", limit_seconds=2
        )
    mine.join(60)
    assert found == [4]
