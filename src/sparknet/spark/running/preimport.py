"""The daemon that forks Python workers with everything already imported.

Set as `spark.python.daemon.module`. A worker that dies is back in a fraction of a second instead of the many
that importing torch takes. Only imports happen before the fork: threads and channels would not survive it.
"""

import gc
import importlib
import os
import sys

from pyspark import daemon

__all__: list[str] = []

if __name__ == "__main__":
    # Spark starts one daemon per kind of worker, with the worker's module as its argument; those that plan data
    # sources run no task of ours, and importing torch would only hold them up.
    if "pyspark.worker" in sys.argv:
        # What a session of ours asks for, by its tasks; in one that is the user's it may be training.
        # torch imports _dynamo with the first optimiser, which would take every new attempt a second.
        asked = os.environ.get("SPARKNET_PREIMPORT", "sparknet.spark.running.worker_job torch._dynamo")
        for module in asked.split():
            importlib.import_module(module)
    # A worker looks for garbage after each task: frozen, the imports' hundred thousand objects are passed over.
    gc.collect()
    gc.freeze()
    daemon.manager()
