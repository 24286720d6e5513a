"""What Spark raises becomes one sentence of ours, and nothing that stands in the rows is taken for one."""

import os
import sys

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparknet.errors import ClusterError, DataError, MissingDependency
from sparknet.spark.jobs.error_translation import spark_errors

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark():
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2]").appName("test_errors").config("spark.ui.enabled", "false")
    session = builder.config("spark.driver.host", "127.0.0.1").getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


def failing(error):
    """A task that raises; workers cannot import this module, so it goes to them whole."""

    def fail(batches):
        raise error

    return fail


@pytest.mark.parametrize("kind", [DataError, MissingDependency])
def test_what_our_own_code_raises_on_a_worker_keeps_kind_and_message(spark, kind):
    frame = spark.range(0, 2, 1, 1).mapInArrow(failing(kind("a.csv: row 3 is torn")), "id bigint")
    with pytest.raises(kind) as raised, spark_errors("reading"):
        frame.collect()
    assert str(raised.value) == "a.csv: row 3 is torn"


def test_another_error_on_a_worker_is_the_cluster_s(spark):
    frame = spark.range(0, 2, 1, 1).mapInArrow(failing(ValueError("no luck")), "id bigint")
    with (
        pytest.raises(ClusterError, match=r"reading failed in Spark: ValueError: no luck"),
        spark_errors("reading"),
    ):
        frame.collect()


@pytest.mark.parametrize("of_a_worker", [False, True])
def test_what_a_query_raises_for_a_row_is_a_data_error(spark, of_a_worker):
    text = "column x: 'sparknet.errors.MissingDependency: a\nb' is no number: correct it"
    frame = spark.range(0, 4, 1, 2).select(
        F.when(F.col("id") < 3, F.col("id")).otherwise(F.raise_error(F.lit(text)))
    )
    frame = frame.toDF("id")
    if of_a_worker:
        frame = frame.mapInArrow(lambda batches: batches, "id bigint")
    with pytest.raises(DataError) as raised, spark_errors("reading"):
        frame.collect()
    assert str(raised.value) == text.replace("\n", " ")


def test_a_query_that_spark_refuses_is_a_data_error(spark):
    refused = pytest.raises(DataError, match=r"reading: Spark refused: \[UNRESOLVED_COLUMN.*correct the source")
    with refused, spark_errors("reading"):
        spark.range(1).select("missing").collect()
