"""The daemon that forks Python workers with everything already imported.

Set as `spark.python.daemon.module`. A worker that dies is back in a fraction of a second instead of the many
that importing torch takes. Only imports happen before the fork: threads and channels would not survive it.
"""

import pyarrow.flight  # noqa: F401  # pyright: ignore[reportUnusedImport]
import torch.distributed  # noqa: F401  # pyright: ignore[reportUnusedImport]
from pyspark import daemon

import sparknet.spark.placement  # noqa: F401  # pyright: ignore[reportUnusedImport]

if __name__ == "__main__":
    daemon.manager()
