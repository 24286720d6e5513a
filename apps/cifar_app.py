"""The original's CifarApp: spark-submit apps/cifar_app.py N."""

import sys

from sparknet.cli.apps import App, run_app

APP = App(
    file=__file__,
    about="Train Caffe's quick net on CIFAR-10, as the first SparkNet did.",
    config="cifar_app.toml",
    rounds=300,
    data="data/cifar10",
)

if __name__ == "__main__":
    sys.exit(run_app(APP))
