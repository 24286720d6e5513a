"""A small net as FCN is one, whose images and loss are Python layers, and its solver."""

from pathlib import Path

from places import SUPPORT

NET = """
name: "segments"
layer { name: "images" type: "Python" top: "data" top: "label"
  python_param { module: "MODULE" layer: "GrowingImages"
    param_str: "{'sizes': [(8, 8), (12, 10), (5, 16)], 'fails_at': FAILS_AT}" } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 6 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "score" type: "Convolution" bottom: "pool" top: "score"
  convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "up" type: "Deconvolution" bottom: "score" top: "up" param { lr_mult: 0 }
  convolution_param { num_output: 3 kernel_size: 4 stride: 2 group: 3 bias_term: false
    weight_filler { type: "bilinear" } } }
layer { name: "crop" type: "Crop" bottom: "up" bottom: "data" top: "cropped" crop_param { axis: 2 offset: 1 } }
layer { name: "accuracy" type: "Accuracy" bottom: "cropped" bottom: "label" top: "accuracy"
  include { phase: TEST } }
layer { name: "loss" type: "Python" bottom: "cropped" bottom: "label" top: "loss" loss_weight: 1
  python_param { module: "MODULE" layer: "PixelLoss" } }
"""
SOLVER = """
net: "net.prototxt"
base_lr: 0.2 lr_policy: "fixed" momentum: 0.5 weight_decay: 0.001 max_iter: 12 random_seed: 5
test_iter: 6 test_interval: 12 test_initialization: false snapshot: 6 snapshot_prefix: "snapshots/segments"
"""


def write_segmentation(directory: Path, module: str, *, fails_at: int | None = None) -> Path:
    """Write net, solver and the layers' module, of a name that no other net here has; gives the solver."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{module}.py").write_text((SUPPORT / "segment_layers.py").read_text())
    (directory / "net.prototxt").write_text(NET.replace("MODULE", module).replace("FAILS_AT", str(fails_at)))
    solver = directory / "solver.prototxt"
    solver.write_text(SOLVER)
    return solver
