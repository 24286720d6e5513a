"""Train neural networks on the Spark cluster you already have.

Spark places the workers and feeds them; each worker trains its own replica for a number of local steps, then
all replicas average their weights (SparkNet, arXiv 1511.06051) or take an outer optimiser's step (DiLoCo,
arXiv 2311.08105). Start at `sparknet.train(df, net, ...)`, at the estimators of `sparknet.ml`, or at the command
line, `sparknet --help`. Caffe's files by themselves, without a cluster, are `sparknet.caffe`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparknet.ml.train import train

__all__ = ["__version__", "train"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Whoever imports a room of this package, or asks for its version, must not wait for Spark and torch.
    if name == "train":
        from sparknet.ml.train import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
