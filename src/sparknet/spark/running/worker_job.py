"""Workers as tasks of one ordinary Spark job: a frozen plan goes to a module-level function.

The job reads `spark.range`, so no shuffle stands in its lineage: when an executor dies, Spark retries that
task alone, never a stage that would run a slot twice.
"""

import functools
import os
import socket
from collections.abc import Iterator

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import SparkSession

from sparknet.spark.running.worker_task import WorkerPlan, train_as
from sparknet.training.coordination.messages import Register

__all__ = ["run_workers"]


def run_workers(spark: SparkSession, plan: WorkerPlan) -> None:
    """Run one task per worker and wait for all of them; called in a thread of its own.

    Raises:
        Exception: whatever Spark raises when a task has failed too often or the job was cancelled.
    """
    slots = plan.config.run.workers
    # No barrier: its stage restarts all tasks when one fails, and the point is that the others go on.
    spark.range(0, slots, 1, slots).mapInArrow(functools.partial(run_slot, plan), "slot bigint").collect()


def run_slot(plan: WorkerPlan, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The task: train as the worker of this partition's slot until the run ends."""
    context = TaskContext.get()
    assert context is not None
    # Taken first, so that nothing waits in Spark's pipe for the hours that follow.
    for _ in batches:
        pass
    # The task attempt's id is unique in the application and grows; the attempt number begins anew with a stage.
    slot, attempt = context.partitionId(), context.taskAttemptId()
    train_as(plan, Register(slot=slot, attempt=attempt, host=socket.gethostname(), pid=os.getpid()))
    yield pa.record_batch({"slot": pa.array([slot], pa.int64())})
