"""A worker as the one task of a Spark job: a frozen plan goes to a module-level function.

The job reads `spark.range`, so no shuffle stands in its lineage. The driver's side is `worker_jobs.py`.
"""

import os
import socket
from collections.abc import Iterator

import pyarrow as pa
from pyspark import TaskContext

from sparknet.spark.running.worker_task import WorkerPlan, train_as
from sparknet.training.coordination.messages import Register

__all__ = ["run_slot"]


def run_slot(
    plan: WorkerPlan, slot: int, attempt: int, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """The task: train as the worker of this slot until the run ends.

    Args:
        plan: what the run is.
        slot: the worker's place among `run.workers`.
        attempt: which try of the run's this is; the driver counts them, and a later one has a higher number.
        batches: what Spark gives the task; nothing in it matters.
    """
    # Taken first, so that nothing waits in Spark's pipe for the hours that follow.
    for _ in batches:
        pass
    context = TaskContext.get()
    assert context is not None, "Spark runs this in a task"
    # Spark's own repetition, which has the number of the attempt that is gone: it ends the job at once, and the
    # driver, which alone starts attempts, sees that and starts the next one.
    if context.attemptNumber() == 0:
        train_as(plan, Register(slot=slot, attempt=attempt, host=socket.gethostname(), pid=os.getpid()))
    yield from ()
