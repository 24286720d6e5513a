"""Caffe's own CIFAR-10 example (examples/cifar10/cifar10_quick_*.prototxt) with small made-up data."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from formats import write_cifar
from sparknet.caffe.weights.mean_image import write_mean

TRAIN_TEST = """
name: "CIFAR10_quick"
layer {
  name: "cifar"
  type: "Data"
  top: "data"
  top: "label"
  include {
    phase: TRAIN
  }
  transform_param {
    mean_file: "MEAN"
  }
  data_param {
    source: "examples/cifar10/cifar10_train_lmdb"
    batch_size: 20
    backend: LMDB
  }
}
layer {
  name: "cifar"
  type: "Data"
  top: "data"
  top: "label"
  include {
    phase: TEST
  }
  transform_param {
    mean_file: "MEAN"
  }
  data_param {
    source: "examples/cifar10/cifar10_test_lmdb"
    batch_size: 10
    backend: LMDB
  }
}
layer {
  name: "conv1"
  type: "Convolution"
  bottom: "data"
  top: "conv1"
  param {
    lr_mult: 1
  }
  param {
    lr_mult: 2
  }
  convolution_param {
    num_output: 32
    pad: 2
    kernel_size: 5
    stride: 1
    weight_filler {
      type: "gaussian"
      std: 0.0001
    }
    bias_filler {
      type: "constant"
    }
  }
}
layer {
  name: "pool1"
  type: "Pooling"
  bottom: "conv1"
  top: "pool1"
  pooling_param {
    pool: MAX
    kernel_size: 3
    stride: 2
  }
}
layer {
  name: "relu1"
  type: "ReLU"
  bottom: "pool1"
  top: "pool1"
}
layer {
  name: "conv2"
  type: "Convolution"
  bottom: "pool1"
  top: "conv2"
  param {
    lr_mult: 1
  }
  param {
    lr_mult: 2
  }
  convolution_param {
    num_output: 32
    pad: 2
    kernel_size: 5
    stride: 1
    weight_filler {
      type: "gaussian"
      std: 0.01
    }
    bias_filler {
      type: "constant"
    }
  }
}
layer {
  name: "relu2"
  type: "ReLU"
  bottom: "conv2"
  top: "conv2"
}
layer {
  name: "pool2"
  type: "Pooling"
  bottom: "conv2"
  top: "pool2"
  pooling_param {
    pool: AVE
    kernel_size: 3
    stride: 2
  }
}
layer {
  name: "conv3"
  type: "Convolution"
  bottom: "pool2"
  top: "conv3"
  param {
    lr_mult: 1
  }
  param {
    lr_mult: 2
  }
  convolution_param {
    num_output: 64
    pad: 2
    kernel_size: 5
    stride: 1
    weight_filler {
      type: "gaussian"
      std: 0.01
    }
    bias_filler {
      type: "constant"
    }
  }
}
layer {
  name: "relu3"
  type: "ReLU"
  bottom: "conv3"
  top: "conv3"
}
layer {
  name: "pool3"
  type: "Pooling"
  bottom: "conv3"
  top: "pool3"
  pooling_param {
    pool: AVE
    kernel_size: 3
    stride: 2
  }
}
layer {
  name: "ip1"
  type: "InnerProduct"
  bottom: "pool3"
  top: "ip1"
  param {
    lr_mult: 1
  }
  param {
    lr_mult: 2
  }
  inner_product_param {
    num_output: 64
    weight_filler {
      type: "gaussian"
      std: 0.1
    }
    bias_filler {
      type: "constant"
    }
  }
}
layer {
  name: "ip2"
  type: "InnerProduct"
  bottom: "ip1"
  top: "ip2"
  param {
    lr_mult: 1
  }
  param {
    lr_mult: 2
  }
  inner_product_param {
    num_output: 10
    weight_filler {
      type: "gaussian"
      std: 0.1
    }
    bias_filler {
      type: "constant"
    }
  }
}
layer {
  name: "accuracy"
  type: "Accuracy"
  bottom: "ip2"
  bottom: "label"
  top: "accuracy"
  include {
    phase: TEST
  }
}
layer {
  name: "loss"
  type: "SoftmaxWithLoss"
  bottom: "ip2"
  bottom: "label"
  top: "loss"
}
"""

SOLVER = """# reduce the learning rate after 8 epochs (4000 iters) by a factor of 10

# The train/test net protocol buffer definition
net: "cifar10_quick_train_test.prototxt"
# test_iter specifies how many forward passes the test should carry out.
test_iter: 4
# Carry out testing every 8 training iterations.
test_interval: 8
# The base learning rate, momentum and the weight decay of the network.
base_lr: 0.001
momentum: 0.9
weight_decay: 0.004
# The learning rate policy
lr_policy: "fixed"
# Display every 100 iterations
display: 100
# The maximum number of iterations
max_iter: 24
# snapshot intermediate results
snapshot: 8
snapshot_prefix: "snapshots/cifar10_quick"
random_seed: 3
# solver mode: CPU or GPU
solver_mode: GPU
"""


@dataclass(frozen=True)
class Example:
    """The files, in one directory."""

    directory: Path
    images: np.ndarray
    """Training rows, uint8 [n, 3, 32, 32]."""
    labels: np.ndarray
    mean: np.ndarray
    """float32 [3, 32, 32]."""

    @property
    def net(self) -> Path:
        return self.directory / "cifar10_quick_train_test.prototxt"

    @property
    def solver(self) -> Path:
        return self.directory / "cifar10_quick_solver.prototxt"

    @property
    def data(self) -> str:
        """What `--data` takes."""
        return f"cifar10:{self.directory / 'data'}"


def learnable_rows(rows: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each class is a coloured square at a place of its own, over noise: uint8 [rows, 3, 32, 32], int64 [rows]."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % 10
    random.shuffle(labels)
    images = random.integers(90, 120, (rows, 3, 32, 32))
    for image, label in zip(images, labels, strict=True):
        y, x = 16 * (label // 5 % 2), 6 * (label % 5)
        image[label % 3, y : y + 14, x : x + 8] = 250
        image[(label + 1) % 3, y : y + 14, x : x + 8] = 10
    return images.astype(np.uint8), labels


def write_example(directory: Path, *, solver: str = SOLVER, net: str = TRAIN_TEST) -> Example:
    """Write both prototxt files, the mean image, and CIFAR-10 batches of 160 training and 40 test rows."""
    (directory / "data").mkdir(parents=True)
    images, labels = learnable_rows(160, seed=1)
    for number in range(2):
        rows = slice(80 * number, 80 * number + 80)
        write_cifar(directory / "data" / f"data_batch_{number + 1}.bin", images[rows], labels[rows])
    write_cifar(directory / "data" / "test_batch.bin", *learnable_rows(40, seed=2))
    mean = images.astype(np.float64).mean(0).astype(np.float32)
    write_mean(directory / "mean.binaryproto", mean)
    example = Example(directory, images, labels, mean)
    example.net.write_text(net.replace("MEAN", str(directory / "mean.binaryproto")))
    example.solver.write_text(solver)
    return example
