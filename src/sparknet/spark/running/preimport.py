"""The daemon that forks Python workers with everything already imported.

Set as `spark.python.daemon.module`. A worker that dies is back in a fraction of a second instead of the many
that importing torch takes. Only imports happen before the fork: threads and channels would not survive it.
"""

import gc
import importlib
import sys

from pyspark import daemon

__all__: list[str] = []

if __name__ == "__main__":
    # Spark starts one daemon per kind of worker, with the worker's module as its argument; those that plan data
    # sources never train, and importing torch would only hold them up.
    if "pyspark.worker" in sys.argv:
        importlib.import_module("sparknet.spark.running.worker_task")
        # torch imports it with the first optimiser: a second of every worker's start, and of every new attempt's.
        importlib.import_module("torch._dynamo")
    # A worker looks for garbage after each task: frozen, the imports' hundred thousand objects are passed over.
    gc.collect()
    gc.freeze()
    daemon.manager()
