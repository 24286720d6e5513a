"""Train neural networks on the Spark cluster you already have.

Spark places the workers and feeds them; each worker trains its own replica for a number of local steps, then
all replicas average their weights (SparkNet, arXiv 1511.06051) or take an outer optimiser's step (DiLoCo,
arXiv 2311.08105). Start at `sparknet.spark.running.run.train`, or at the command line, `sparknet --help`. Caffe's
files by themselves, without a cluster, are `sparknet.caffe`.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
