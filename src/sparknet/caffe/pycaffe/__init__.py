"""What `import caffe` gives to the module of a Python layer: the part of pycaffe that such layers use.

Caffe itself is not here: there are no nets, solvers and classifiers, only what a layer needs to be one.
"""

from sparknet.caffe.pycaffe import io
from sparknet.caffe.pycaffe.layer import TEST, TRAIN, Layer
from sparknet.caffe.pycaffe.place import (
    multiprocess,
    set_device,
    set_mode_cpu,
    set_mode_gpu,
    set_random_seed,
    solver_count,
    solver_rank,
)

__all__ = [
    "TEST",
    "TRAIN",
    "Layer",
    "io",
    "multiprocess",
    "set_device",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_random_seed",
    "solver_count",
    "solver_rank",
]

__version__ = "1.0.0"


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"caffe has no {name!r} here; a Python layer of SparkNet has of pycaffe {', '.join(__all__)}: take the "
        "part that needs more out of the layer's module"
    )
