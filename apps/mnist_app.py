"""The original's MnistApp: spark-submit apps/mnist_app.py N."""

import sys

from sparknet.cli.apps import App, run_app

APP = App(
    file=__file__,
    about="Train a net of two convolutions on MNIST, as the first SparkNet did with TensorFlow.",
    config="mnist_app.toml",
    rounds=200,
    data="data/mnist",
    net="mnist_app.prototxt",
)

if __name__ == "__main__":
    sys.exit(run_app(APP))
