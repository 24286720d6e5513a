"""`sparknet pack`: the environment as an archive for Spark's workers, and what to tell spark-submit of it."""

import argparse
import os
import sys
from pathlib import Path

from sparknet.spark.packing import pack_environment

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Pack, and print the words for spark-submit."""
    path: Path = arguments.archive
    print(f"packing {sys.prefix}, which takes minutes", file=sys.stderr)
    pack_environment(path, leave_out=arguments.exclude, level=arguments.level)
    base = Path(os.path.realpath(sys.executable))
    print(f"{path}: {path.stat().st_size / 1e6:,.0f} MB, Python {sys.version.partition(' ')[0]}")
    print(f"spark-submit --archives {path}#environment ...")
    print("  client mode, where this Python is the driver's:")
    print(f"    export PYSPARK_DRIVER_PYTHON={sys.executable} PYSPARK_PYTHON=./environment/bin/python")
    print("  cluster mode on YARN:")
    print("    --conf spark.yarn.appMasterEnv.PYSPARK_PYTHON=./environment/bin/python")
    if base.is_relative_to(sys.prefix):
        print("It holds its interpreter.")
    else:
        print(f"Its interpreter is a link: Python must stand at {base} on every worker too.")
    return 0
